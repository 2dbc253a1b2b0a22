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
]


@dataclass(frozen=True)
class Event:
    """Something that has just happened; what comes after it has not begun."""

    stage: Stage
    """``kept``: an initial task's LoRA is on disk. ``recorded``: the step's record is on disk, its
    version is not. ``committed``: both are. ``unscored``: a task's evaluation data is gone."""
    task: str
    """Its name; for the initial step of several tasks their names, joined by ``+``."""
    text: str
    """The same for people, one line."""


Observer: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An observer that does nothing."""
