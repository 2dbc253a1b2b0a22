"""What a stream tells while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Stage = Literal[
    "checking",
    "resumed",
    "learning",
    "kept",
    "learned",
    "merged",
    "unscored",
    "scored",
    "recorded",
    "committed",
    "routed",
]


@dataclass(frozen=True)
class Event:
    """Something that has just happened; what comes after it has not begun."""

    stage: Stage
    """``kept``: an initial task's LoRA is on disk. ``recorded``: the step's record is on disk, its
    version is not. ``committed``: both are. ``unscored``: a task's evaluation data is gone.
    ``routed``: the router is on disk, with its scores; the task is the last step's."""
    task: str
    """Its name; for the initial step of several tasks their names, joined by ``+``."""
    text: str
    """The same for people, one line."""


Observer: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An observer that does nothing."""


def reason(error: Exception) -> str:
    """Why data cannot be read, one line."""
    return "; ".join(getattr(error, "problems", ())) or str(error)
