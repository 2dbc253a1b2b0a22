"""Streams: run a recipe task by task; each step is committed with its scores, or not at all."""

from sharespace.stream.records import (
    Event,
    Learned,
    Observer,
    RoutedTask,
    RouterResult,
    Step,
    StreamResult,
)
from sharespace.stream.run import run

__all__ = [
    "Event",
    "Learned",
    "Observer",
    "RoutedTask",
    "RouterResult",
    "Step",
    "StreamResult",
    "run",
]
