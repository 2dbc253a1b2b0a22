"""Continual-learning measures of an R matrix (method.md, "Continual-learning measures").

``scores[t][i]`` is the score on task i after step t; None before the step that first learned i.
Lopez-Paz & Ranzato, "Gradient Episodic Memory", arXiv 1706.08840 (ACC, BWT).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from sharespace.errors import OptionError

Scores = Sequence[Sequence[float | None]]


def first_scores(scores: Scores) -> list[float]:
    """R[i][i]: each task's score after the step that first learned it.

    Raises:
        OptionError: a task has no score at all.
    """
    columns = [[s for s in column if s is not None] for column in zip(*scores, strict=True)]
    if not all(columns):
        raise OptionError("scores", "a task has none in any step", "Score every task once")
    return [column[0] for column in columns]


def last_scores(scores: Scores) -> list[float]:
    """R[T][i]: each task's score after the last step."""
    return [s for s in scores[-1] if s is not None]


def accuracy(scores: Scores) -> float:
    """ACC: mean over the tasks after the last step."""
    return fmean(last_scores(scores))


def backward_transfer(scores: Scores) -> float:
    """BWT: mean of R[T][i] - R[i][i] over the tasks learned before the last step; 0 without any."""
    earlier = _earlier(scores)
    first, last = first_scores(scores), last_scores(scores)
    return fmean(last[i] - first[i] for i in earlier) if earlier else 0.0


def forgetting(scores: Scores) -> float:
    """Mean of the best earlier score minus the last one, over the same tasks; 0 without any."""
    earlier, last = _earlier(scores), last_scores(scores)
    best = {i: max(s for row in scores[:-1] if (s := row[i]) is not None) for i in earlier}
    return fmean(best[i] - last[i] for i in earlier) if earlier else 0.0


def gain_retained(
    share: Sequence[float], own: Sequence[float], head: Sequence[float]
) -> float | None:
    """mean(Share - head only) / mean(own LoRA - head only); None where own LoRA gains nothing."""
    gain = fmean(own) - fmean(head)
    return (fmean(share) - fmean(head)) / gain if gain > 0 else None


def _earlier(scores: Scores) -> list[int]:
    """Tasks that have a score before the last step."""
    return [i for i in range(len(scores[-1])) if any(row[i] is not None for row in scores[:-1])]
