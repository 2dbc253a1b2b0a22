"""A known task with other coefficients in the same bases: trained on ("Share-full") or moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sharespace.errors import MismatchError
from sharespace.linalg.frames import frame_difference
from sharespace.subspace.coefficients import CoefficientPair, Coefficients
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import CALIBRATE, FINETUNE, ShareModel, Task


def retrained(
    model: ShareModel,
    task: str,
    pairs: Mapping[str, CoefficientPair],
    kept: Mapping[str, Tensor],
    event: str = FINETUNE,
) -> ShareModel:
    """The model with one task's coefficients and heads replaced; nothing else changes.

    After ``FINETUNE`` the ledger starts a new segment: the task is now what was trained, so its
    bound counts only what is lost from here on; the bound before stays on record (method.md,
    "Ledger"). After ``CALIBRATE`` the task is still what it came as, and the bound grows by how far
    its update was moved.

    Args:
        pairs: module -> (E, F); modules that are not named stay as they are. Of a group's task
            in the directions of its own subspace, or of all.
        kept: what the task carries besides, by the key in the adapter's file.
        event: ``FINETUNE`` or ``CALIBRATE``.

    Raises:
        TaskNotFoundError: there is no such task.
        MismatchError: a pair does not fit its module's bases, or is of a module the task lacks.
    """
    known = model.task(task)
    new = {m: _stored(model, known, m, pair, model.dtype) for m, pair in pairs.items()}
    if event == CALIBRATE:
        before: Mapping[str, Coefficients] = known.coefficients
    else:
        # What was trained, unrounded: only the cast to the stored dtype is lost.
        exact = {m: (e.double().cpu(), f.double().cpu()) for m, (e, f) in pairs.items()}
        before = {m: _stored(model, known, m, pair, torch.float64) for m, pair in exact.items()}
    lost = {m: _distance(model.layers[m], before[m], new[m]) for m in new}
    changed = replace(
        known,
        coefficients={**known.coefficients, **new},
        ledger=known.ledger.with_event(event, lost),
        kept={**known.kept, **kept} if kept else known.kept,
    )
    return model.with_tasks(changed if t == task else model.tasks[t] for t in model.tasks)


def _stored(
    model: ShareModel, task: Task, module: str, pair: CoefficientPair, dtype: torch.dtype
) -> Coefficients:
    """One module's new coefficients in a dtype.

    Raises:
        MismatchError: see ``retrained``.
    """
    if module not in task.coefficients:
        raise MismatchError(
            f"module {module!r}", f"task {task.name!r} does not adapt it", "Leave it out"
        )
    return task.coefficients[module].with_factors(module, pair, model.layers[module], dtype)


def _distance(layer: LayerSubspace, old: Coefficients, new: Coefficients) -> float:
    """Frobenius norm of the difference of two updates of one module."""
    return float(frame_difference(old.framed(layer), new.framed(layer))[0])
