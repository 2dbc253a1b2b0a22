"""How good a stream's router is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any


@dataclass(frozen=True)
class RoutedTask:
    """Percentages of a task's evaluation data."""

    routing: float
    """That go to the task."""
    fallback: float
    """That go to the base model; they count as wrong below."""
    oracle: float | None
    """Accuracy when the task is given; None, like the next: no classification."""
    routed: float | None
    """Accuracy when the router chooses the task."""
    class_incremental: float | None
    """Accuracy among the classes of all tasks: the right task and the right label; None: not all
    tasks of the router are classifications."""


@dataclass(frozen=True)
class RouterResult:
    """A router and how good it is."""

    path: Path
    tasks: tuple[str, ...]
    """That it knows."""
    bytes: int
    """Of its file."""
    margin: float | None
    """In nats, see ``Router.margin``; None: no example could be held out."""
    fallback_rate: float
    """That the margin was set for, on held-out training examples of all tasks."""
    scores: Mapping[str, RoutedTask]
    """Task -> scores on its evaluation data."""
    notices: tuple[str, ...] = ()
    """Tasks that nothing is sent to, and scores that are missing."""

    @property
    def means(self) -> dict[str, float | None]:
        """Each score's mean over the tasks that have it; None: none has."""
        names = RoutedTask.__dataclass_fields__
        return {name: _mean(getattr(s, name) for s in self.scores.values()) for name in names}

    def to_record(self) -> dict[str, Any]:
        """JSON values; without the path."""
        scores = {name: vars(score) for name, score in self.scores.items()}
        rest = {k: v for k, v in vars(self).items() if k not in ("path", "scores")}
        return {**rest, "tasks": list(self.tasks), "notices": list(self.notices), "scores": scores}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], path: Path) -> RouterResult:
        """What ``to_record`` gave."""
        scores = {name: RoutedTask(**score) for name, score in record["scores"].items()}
        lists = {name: tuple(record[name]) for name in ("tasks", "notices")}
        return cls(**{**record, **lists, "scores": scores, "path": path})


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None
