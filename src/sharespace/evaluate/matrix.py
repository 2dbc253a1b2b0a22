"""The R matrix of a stream: every task's score after every step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sharespace.errors import OptionError


@dataclass(frozen=True)
class ScoreMatrix:
    """``R[t][i]``: score on task i after step t (method.md, "Continual-learning measures").

    Higher is better: put in a loss with its sign turned. A step may learn several tasks at once,
    for example the build from three adapters. Raises OptionError where the parts do not fit.
    """

    tasks: tuple[str, ...]
    """Names of the columns, each once."""
    steps: tuple[str, ...] = ()
    """Names of the rows, in the order of the stream."""
    scores: tuple[tuple[float | None, ...], ...] = ()
    """steps x tasks; None where a task was not scored. The unit is that of the metric."""
    learned: tuple[int | None, ...] = ()
    """By task: the step that first learned it; None: not yet. Left out: the first step with a score
    of it."""
    zero_shot: str | None = None
    """How a task was scored before it was learned (for example "its head on the mean core");
    needed where there are such scores."""

    def __post_init__(self) -> None:
        rows = tuple(tuple(row) for row in self.scores)
        for name, value in (("tasks", self.tasks), ("steps", self.steps)):
            object.__setattr__(self, name, tuple(value))
        object.__setattr__(self, "scores", rows)
        self._check_shape()
        object.__setattr__(self, "learned", tuple(self.learned) or self._first_scored())
        self._check_learned()

    def _check_shape(self) -> None:
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise OptionError("tasks", f"{self.tasks} has no name or one twice", "Name each once")
        if len(self.scores) != len(self.steps):
            why = f"{len(self.scores)} rows for {len(self.steps)} steps"
            raise OptionError("scores", why, "Give one row a step")
        for step, row in zip(self.steps, self.scores, strict=True):
            if len(row) != len(self.tasks):
                why = f"{len(row)} scores for {len(self.tasks)} tasks after step {step!r}"
                raise OptionError("scores", why, "Give None where a task was not scored")
            if not all(s is None or math.isfinite(s) for s in row):
                why = f"not a finite number after step {step!r}: {row}"
                raise OptionError("scores", why, "Give None where a task was not scored")

    def _first_scored(self) -> tuple[int | None, ...]:
        return tuple(
            next((t for t, row in enumerate(self.scores) if row[i] is not None), None)
            for i in range(len(self.tasks))
        )

    def _check_learned(self) -> None:
        if len(self.learned) != len(self.tasks):
            why = f"{len(self.learned)} entries for {len(self.tasks)} tasks"
            raise OptionError("learned", why, "Give one step a task")
        for i, step in enumerate(self.learned):
            if step is not None and not 0 <= step < len(self.steps):
                why = f"task {self.tasks[i]!r} at step {step} of {len(self.steps)}"
                raise OptionError("learned", why, "Steps count from 0")
            if self.zero_shot is None and any(row[i] is not None for row in self.scores[:step]):
                why = f"task {self.tasks[i]!r} has scores from before it was learned"
                remedy = "Say by which rule they were made, or which step learned the task"
                raise OptionError("zero_shot", why, remedy)

    def with_step(
        self, name: str, scores: Mapping[str, float], learned: Iterable[str] = ()
    ) -> ScoreMatrix:
        """The matrix after one more step.

        Args:
            name: of the step.
            scores: task -> score; a task that is left out was not scored.
            learned: the tasks that this step was the first to learn.

        Raises:
            OptionError: a name is not a task, or a task was learned before.
        """
        new = set(learned)
        for task in (*scores, *new):
            self.column(task)
        again = [t for t in new if self.learned[self.column(t)] is not None]
        if again:
            raise OptionError("learned", f"{again} learned in an earlier step", "Leave them out")
        here = len(self.steps)
        return replace(
            self,
            steps=(*self.steps, name),
            scores=(*self.scores, tuple(scores.get(t) for t in self.tasks)),
            learned=tuple(
                here if t in new else at for t, at in zip(self.tasks, self.learned, strict=True)
            ),
        )

    def column(self, task: str) -> int:
        """The number of a task.

        Raises:
            OptionError: there is no such task.
        """
        if task not in self.tasks:
            raise OptionError(f"task {task!r}", "not in the matrix", f"Known: {self.tasks}")
        return self.tasks.index(task)

    def up_to(self, step: int) -> ScoreMatrix:
        """The stream as it was after a step (from 0): its rows, and the tasks learned by then."""
        known = [i for i, at in enumerate(self.learned) if at is not None and at <= step]
        return ScoreMatrix(
            tuple(self.tasks[i] for i in known),
            self.steps[: step + 1],
            tuple(tuple(row[i] for i in known) for row in self.scores[: step + 1]),
            tuple(self.learned[i] for i in known),
            self.zero_shot,
        )

    @property
    def first(self) -> dict[str, float]:
        """Task -> ``R[i][i]``, its score after the step that first learned it.

        Raises:
            OptionError: a task was not learned, or not scored then.
        """
        return {t: _scored(self, learned_at(self, i), i) for i, t in enumerate(self.tasks)}

    @property
    def last(self) -> dict[str, float]:
        """Task -> ``R[T][i]``, its score after the last step.

        Raises:
            OptionError: a task was not learned, or not scored then.
        """
        for i in range(len(self.tasks)):
            learned_at(self, i)
        return {t: _scored(self, len(self.steps) - 1, i) for i, t in enumerate(self.tasks)}

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "tasks": list(self.tasks),
            "steps": list(self.steps),
            "scores": [list(row) for row in self.scores],
            "learned": list(self.learned),
            "zero_shot": self.zero_shot,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ScoreMatrix:
        """What ``to_record`` gave.

        Raises:
            OptionError: a field is missing or does not fit.
        """
        missing = {"tasks", "steps", "scores", "learned", "zero_shot"} - set(record)
        if missing:
            raise OptionError("score matrix", f"no {sorted(missing)} in its record")
        try:
            return cls(
                tasks=tuple(record["tasks"]),
                steps=tuple(record["steps"]),
                scores=tuple(tuple(row) for row in record["scores"]),
                learned=tuple(record["learned"]),
                zero_shot=record["zero_shot"],
            )
        except TypeError as error:
            raise OptionError("score matrix", f"its record does not fit: {error}") from error


def learned_at(matrix: ScoreMatrix, i: int) -> int:
    """The step that first learned task number i.

    Raises:
        OptionError: none did.
    """
    step = matrix.learned[i]
    if step is None:
        why = f"task {matrix.tasks[i]!r} was not learned in any step"
        raise OptionError("scores", why, "Measure the stream up to a step with up_to()")
    return step


def scores_between(matrix: ScoreMatrix, i: int, begin: int, end: int) -> list[float]:
    """R[begin .. end - 1][i].

    Raises:
        OptionError: one of them is None.
    """
    return [_scored(matrix, t, i) for t in range(begin, end)]


def _scored(matrix: ScoreMatrix, t: int, i: int) -> float:
    score = matrix.scores[t][i]
    if score is None:
        why = f"task {matrix.tasks[i]!r} was not scored after step {matrix.steps[t]!r}"
        raise OptionError("scores", why, "Score every known task after every step")
    return score
