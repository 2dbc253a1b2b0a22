"""The scores of a stream, ``ScoreMatrix`` (R), and its continual-learning measures.

The definitions stand in docs/method.md, "Continual-learning measures". Sources: Lopez-Paz &
Ranzato, "Gradient Episodic Memory", arXiv 1706.08840 (ACC, BWT, FWT); Chaudhry et al., "Riemannian
Walk", arXiv 1801.10112 (forgetting). T is the last step; "i < T" are the tasks learned before it,
"i >= 2" those learned after the first one. All measures are in the unit of the scores but for
``retained`` and ``gain_retained``, which are fractions.

Share selects coefficients by the task's name, so that all figures are task-incremental.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from sharespace.errors import OptionError


@dataclass(frozen=True)
class ScoreMatrix:
    """``R[t][i]``: score on task i after step t (docs/method.md, "Continual-learning measures").

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
    """For each task the step that first learned it; None: not yet. By default the first step with a
    score of it."""
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

    @classmethod
    def of_one_step(cls, scores: Mapping[str, float]) -> ScoreMatrix:
        """The matrix of what learns all tasks at once, or each alone.

        Args:
            scores: task -> score.
        """
        return cls(tuple(scores), ("all",), (tuple(scores.values()),))

    def with_step(
        self, name: str, scores: Mapping[str, float | None], learned: Iterable[str] = ()
    ) -> ScoreMatrix:
        """The matrix after one more step.

        Args:
            name: of the step.
            scores: task -> score; a task that is left out, or has None, was not scored.
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
        number = len(self.steps)
        return replace(
            self,
            steps=(*self.steps, name),
            scores=(*self.scores, tuple(scores.get(t) for t in self.tasks)),
            learned=tuple(
                number if t in new else at for t, at in zip(self.tasks, self.learned, strict=True)
            ),
        )

    def column(self, task: str) -> int:
        """The number of a task.

        Args:
            task: name of the task.

        Raises:
            OptionError: there is no such task.
        """
        if task not in self.tasks:
            raise OptionError(f"task {task!r}", "not in the matrix", f"Known: {self.tasks}")
        return self.tasks.index(task)

    def up_to(self, step: int) -> ScoreMatrix:
        """The stream as it was after a step (from 0): its rows, and the tasks learned by then.

        Args:
            step: number of the step, from 0.
        """
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
        """The matrix as JSON values."""
        return {
            "tasks": list(self.tasks),
            "steps": list(self.steps),
            "scores": [list(row) for row in self.scores],
            "learned": list(self.learned),
            "zero_shot": self.zero_shot,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ScoreMatrix:
        """The matrix that ``to_record`` made a record of.

        Args:
            record: values as JSON has them.

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


def acc(matrix: ScoreMatrix) -> float:
    """ACC = mean_i R[T][i].

    Args:
        matrix: score of every task after every step.

    Raises:
        OptionError: a task was not learned or has no score after the last step. All measures that
            read the last scores raise it.
    """
    return fmean(matrix.last.values())


def acc_over_steps(matrix: ScoreMatrix) -> list[float | None]:
    """ACC over the tasks learned by then, after every step; None before any is learned.

    Args:
        matrix: score of every task after every step.
    """
    means: list[float | None] = []
    for step in range(len(matrix.steps)):
        known = any(at is not None and at <= step for at in matrix.learned)
        means.append(acc(matrix.up_to(step)) if known else None)
    return means


def backward_transfer(matrix: ScoreMatrix) -> float:
    """BWT = mean_{i<T} (R[T][i] - R[i][i]); 0 where the last step is the first to know a task.

    Args:
        matrix: score of every task after every step.
    """
    first, last = matrix.first, matrix.last
    changes = [last[t] - first[t] for t in _before_last(matrix)]
    return fmean(changes) if changes else 0.0


def task_forgetting(matrix: ScoreMatrix) -> dict[str, float]:
    """Task -> max_{i <= t < T} R[t][i] - R[T][i], of the tasks learned before the last step.

    Negative where the last score is the best one.

    Args:
        matrix: score of every task after every step.
    """
    last, end = matrix.last, len(matrix.steps) - 1
    lost = {}
    for task in _before_last(matrix):
        i = matrix.column(task)
        lost[task] = max(scores_between(matrix, i, learned_at(matrix, i), end)) - last[task]
    return lost


def forgetting(matrix: ScoreMatrix) -> float:
    """mean_{i<T} (max_{i <= t < T} R[t][i] - R[T][i]); 0 where there is no such task.

    Never less than -BWT.

    Args:
        matrix: score of every task after every step.
    """
    lost = task_forgetting(matrix)
    return fmean(lost.values()) if lost else 0.0


def forward_transfer(matrix: ScoreMatrix, initial: Mapping[str, float]) -> float | None:
    """FWT = mean_{i>=2} (R[i-1][i] - R_init[i]): what earlier tasks give a task before its turn.

    Args:
        matrix: with its rule for ``zero_shot`` scores.
        initial: task -> score by the same rule without any earlier task.

    Returns:
        None where all tasks were learned in the first step.

    Raises:
        OptionError: no zero-shot rule is stated, or a task was not scored just before its step.
    """
    if matrix.zero_shot is None:
        raise OptionError(
            "forward transfer", "no rule for scores of unknown tasks is stated", "Set zero_shot"
        )
    given = _aligned("initial", initial, matrix.tasks)
    gains = [
        scores_between(matrix, i, step - 1, step)[0] - given[i]
        for i in range(len(matrix.tasks))
        if (step := learned_at(matrix, i)) > 0
    ]
    return fmean(gains) if gains else None


def plasticity(matrix: ScoreMatrix, own: Mapping[str, float]) -> float:
    """mean_i (R[i][i] - own LoRA_i): what learning in the subspace gains or loses.

    Args:
        matrix: of the stream.
        own: task -> score of its own LoRA.
    """
    first, given = matrix.first, _aligned("own", own, matrix.tasks)
    return fmean(a - b for a, b in zip(first.values(), given, strict=True))


def retained(matrix: ScoreMatrix, own: Mapping[str, float]) -> dict[str, float | None]:
    """Task -> R[T][i] / own LoRA_i; None where own LoRA's score is not above 0.

    Args:
        matrix: score of every task after every step.
        own: task -> score of its own LoRA, in the matrix's unit.
    """
    # A ratio to a score that is 0 or negative (a correlation, a loss with its sign turned) says
    # nothing.
    given = dict(zip(matrix.tasks, _aligned("own", own, matrix.tasks), strict=True))
    return {t: s / given[t] if given[t] > 0 else None for t, s in matrix.last.items()}


def gain_retained(
    share: Mapping[str, float], own: Mapping[str, float], head: Mapping[str, float]
) -> float | None:
    """mean_i(Share_i - head only_i) / mean_i(own LoRA_i - head only_i).

    A ratio of means, which easy tasks cannot flatter. None where own LoRA gains nothing.

    Args:
        share, own, head: task -> score, of the same tasks.

    Raises:
        OptionError: they are not of the same tasks, or of none.
    """
    tasks = tuple(share)
    base = fmean(_aligned("head", head, tasks))
    gain = fmean(_aligned("own", own, tasks)) - base
    return (fmean(share.values()) - base) / gain if gain > 0 else None


def _before_last(matrix: ScoreMatrix) -> list[str]:
    end = len(matrix.steps) - 1
    return [t for i, t in enumerate(matrix.tasks) if learned_at(matrix, i) < end]


def _aligned(name: str, scores: Mapping[str, float], tasks: tuple[str, ...]) -> list[float]:
    """The scores in the order of the tasks.

    Raises:
        OptionError: they are not of exactly these tasks.
    """
    different = set(scores) ^ set(tasks)
    if different or not tasks:
        why = f"scores of {sorted(scores)} for the tasks {sorted(tasks)}"
        raise OptionError(name, why, "Give exactly one score a task")
    return [scores[t] for t in tasks]


def learned_at(matrix: ScoreMatrix, i: int) -> int:
    """The step that first learned task number i.

    Args:
        matrix: score of every task after every step.
        i: number of the task, from 0.

    Raises:
        OptionError: none did.
    """
    step = matrix.learned[i]
    if step is None:
        why = f"task {matrix.tasks[i]!r} was not learned in any step"
        raise OptionError("scores", why, "Measure the stream up to a step with up_to()")
    return step


def scores_between(matrix: ScoreMatrix, i: int, first: int, end: int) -> list[float]:
    """The scores R[first .. end - 1][i] of task number i.

    Args:
        matrix: score of every task after every step.
        i: number of the task, from 0.
        first: first step, from 0.
        end: the step after the last one.

    Raises:
        OptionError: one of them is None.
    """
    return [_scored(matrix, t, i) for t in range(first, end)]


def _scored(matrix: ScoreMatrix, t: int, i: int) -> float:
    score = matrix.scores[t][i]
    if score is None:
        why = f"task {matrix.tasks[i]!r} was not scored after step {matrix.steps[t]!r}"
        raise OptionError("scores", why, "Score every known task after every step")
    return score
