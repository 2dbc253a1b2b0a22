"""Streams: run a recipe task by task; each step is committed with its scores, or not at all."""

from sharespace.stream.events import Event, Observer
from sharespace.stream.records import Learned, Step
from sharespace.stream.result import StreamResult
from sharespace.stream.routed import RoutedTask, RouterResult
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
