"""What one step of a Share model cost its tasks: to warn of it, or to refuse the step.

Errors are the ledger's bounds, which are certain (docs/method.md, "Ledger").
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from sharespace.errors import LossWarning, OptionError
from sharespace.options import Limits, OptionType, check_option
from sharespace.subspace.state import ShareModel, Task
from sharespace.words import percent

ERASED_ERROR = 0.99
"""Relative error from which on nothing of a task is left."""
LARGE_BOUND = 0.3
"""Bound on a task's relative error that is worth a warning; what it means for a score depends on
the task."""

_GROWN = 1e-5
"""By how much a bound grows with rounding alone, which is no loss."""


@dataclass(frozen=True)
class TaskLoss:
    """A task that one step took something from."""

    task: str
    bound: float
    """On its relative error, after the step."""

    def __str__(self) -> str:
        name = self.task if self.task.isprintable() else repr(self.task)
        return f"{name} {percent(self.bound)}"


def losses(
    before: ShareModel | None, after: ShareModel, above: float = LARGE_BOUND
) -> list[TaskLoss]:
    """Tasks, old and new, whose bound the step raised to more than a limit; the worst first.

    A task that was above it before, and of which the step took nothing, is not one of them.

    Args:
        before: the model before the step; None: there was none.
        after: the model.
        above: the limit.
    """
    known = {} if before is None else before.tasks
    lost = [
        TaskLoss(name, task.ledger.bound)
        for name, task in after.tasks.items()
        if task.ledger.bound > max(above, _bound_before(known.get(name)) + _GROWN)
    ]
    return sorted(lost, key=lambda loss: -loss.bound)


def _bound_before(task: Task | None) -> float:
    return 0.0 if task is None else task.ledger.bound


def refuse_losses(before: ShareModel, after: ShareModel, max_error: float | None) -> None:
    """Refuse a step that costs a task more than it may.

    Args:
        before: the model before the step.
        after: the model; it is not stored yet.
        max_error: largest bound on a task's relative error that the step may lead to; None: any.

    Raises:
        OptionError: a task, old or new, would be above it.
    """
    if max_error is None:
        return
    lost = losses(before, after, max_error)
    if lost:
        raise OptionError(
            f"max error {percent(max_error)}",
            f"the error would be up to {some_losses(lost)}",
            "Give more room (--cap N, or a larger budget), or leave out what does not fit",
        )


def check_max_error(max_error: float | None) -> None:
    """Refuse what is no relative error.

    Raises:
        OptionError: it is not a number from 0 to 1.
    """
    check_option("max_error", max_error, OptionType(float, optional=True), Limits(least=0, most=1))


def warn_of_losses(before: ShareModel | None, after: ShareModel) -> None:
    """A ``LossWarning`` where a step took much from a task."""
    lost = losses(before, after)
    if lost:
        warnings.warn(
            f"The error is up to {some_losses(lost)}. Give more room (a larger k, cap or budget), "
            "or see with fidelity(against=...) what it is",
            LossWarning,
            stacklevel=3,
        )


def some_losses(lost: list[TaskLoss], most: int = 3) -> str:
    """``a 97 %, b 93 % and 4 more``."""
    shown = ", ".join(map(str, lost[:most]))
    return shown + (f" and {len(lost) - most} more" if len(lost) > most else "")
