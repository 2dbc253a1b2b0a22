"""Continual-learning measures (method.md, "Continual-learning measures").

Sources: Lopez-Paz & Ranzato, "Gradient Episodic Memory", arXiv 1706.08840 (ACC, BWT, FWT);
Chaudhry et al., "Riemannian Walk", arXiv 1801.10112 (forgetting). T is the last step; "i < T" are
the tasks learned before it, "i >= 2" those learned after the first one. All are in the unit of the
scores but for ``retained`` and ``gain_retained``, which are fractions.

Share selects coefficients by the task's name: the figures are task-incremental.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from sharespace.errors import OptionError
from sharespace.evaluate.matrix import ScoreMatrix, learned_at, scores_between


def acc(matrix: ScoreMatrix) -> float:
    """ACC = mean_i R[T][i].

    Raises:
        OptionError: a task was not learned or has no score after the last step; likewise below.
    """
    return fmean(matrix.last.values())


def acc_over_steps(matrix: ScoreMatrix) -> list[float | None]:
    """After every step: ACC over the tasks learned by then; None before any."""
    found: list[float | None] = []
    for step in range(len(matrix.steps)):
        known = any(at is not None and at <= step for at in matrix.learned)
        found.append(acc(matrix.up_to(step)) if known else None)
    return found


def backward_transfer(matrix: ScoreMatrix) -> float:
    """BWT = mean_{i<T} (R[T][i] - R[i][i]); 0 where the last step is the first to know a task."""
    first, last = matrix.first, matrix.last
    changes = [last[t] - first[t] for t in _before_last(matrix)]
    return fmean(changes) if changes else 0.0


def task_forgetting(matrix: ScoreMatrix) -> dict[str, float]:
    """Task -> max_{i <= t < T} R[t][i] - R[T][i], of the tasks learned before the last step.

    Negative where the last score is the best one.
    """
    last, end = matrix.last, len(matrix.steps) - 1
    found = {}
    for task in _before_last(matrix):
        i = matrix.column(task)
        found[task] = max(scores_between(matrix, i, learned_at(matrix, i), end)) - last[task]
    return found


def forgetting(matrix: ScoreMatrix) -> float:
    """mean_{i<T} (max_{i <= t < T} R[t][i] - R[T][i]); 0 where there is no such task.

    Never less than -BWT.
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
    """mean_i (R[i][i] - own LoRA_i)."""
    first, given = matrix.first, _aligned("own", own, matrix.tasks)
    return fmean(a - b for a, b in zip(first.values(), given, strict=True))


def retained(matrix: ScoreMatrix, own: Mapping[str, float]) -> dict[str, float | None]:
    """Task -> R[T][i] / own LoRA_i; None where own LoRA's score is not above 0."""
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
    """The scores in the order of the tasks."""
    different = set(scores) ^ set(tasks)
    if different or not tasks:
        why = f"scores of {sorted(scores)} for the tasks {sorted(tasks)}"
        raise OptionError(name, why, "Give exactly one score a task")
    return [scores[t] for t in tasks]
