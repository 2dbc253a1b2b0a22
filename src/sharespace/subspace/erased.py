"""A byte budget must not erase a task."""

from __future__ import annotations

from sharespace.errors import OptionError
from sharespace.subspace.state import ShareModel


def refuse_erased(model: ShareModel) -> None:
    """A byte budget that leaves nothing of a task is a mistake, not a choice.

    Raises:
        OptionError: the last event of a task's ledger took all of it.
    """
    budget = model.settings.budget
    for task in model.tasks.values() if budget is not None else ():
        ledger = task.ledger
        if ledger.total_norm and ledger.truncations[:, -1].norm() >= 0.999 * ledger.total_norm:
            raise OptionError(
                f"budget of {budget} bytes",
                f"nothing of task {task.name!r} would be left",
                "Give more; plan --variance or plan --error say what other rules need",
            )
