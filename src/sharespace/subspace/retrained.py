"""A known task with other coefficients in the same bases: trained on ("Share-full") or moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sharespace.errors import MismatchError
from sharespace.linalg.frames import frame_difference
from sharespace.subspace.coefficients import dense_cores, part_of, placed, stored
from sharespace.subspace.state import (
    CALIBRATE,
    FINETUNE,
    Coefficients,
    Core,
    LayerSubspace,
    PerTask,
    ShareModel,
    Task,
)

CoefficientPair = tuple[Tensor, Tensor]
"""(E, F), k_left x p and k_right x p; of a private update its factors, n x q and d x q."""


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
        pairs: module -> (E, F); modules that are not named stay as they are. Of a family's task
            in the directions of its own subspace, or of all.
        kept: what the task carries besides, by the key in the adapter's file.
        event: ``FINETUNE`` or ``CALIBRATE``.

    Raises:
        TaskNotFoundError: there is no such task.
        MismatchError: a pair does not fit its module's bases, or is of a module the task lacks.
    """
    known = model.task(task)
    new = {module: _stored(model, known, module, pair) for module, pair in pairs.items()}
    if event == CALIBRATE:
        lost = {m: _distance(model.layers[m], known.coefficients[m], new[m]) for m in new}
    else:
        lost = {m: _cast_loss(model.layers[m], new[m], pairs[m]) for m in new}
    changed = replace(
        known,
        coefficients={**known.coefficients, **new},
        ledger=known.ledger.with_event(event, lost),
        kept={**known.kept, **kept} if kept else known.kept,
    )
    return model.with_tasks(changed if t == task else model.tasks[t] for t in model.tasks)


def _stored(model: ShareModel, task: Task, module: str, pair: CoefficientPair) -> Coefficients:
    """One module's coefficients as the model stores them.

    Raises:
        MismatchError: see ``retrained``.
    """
    if module not in task.coefficients:
        raise MismatchError(
            f"module {module!r}", f"task {task.name!r} does not adapt it", "Leave it out"
        )
    layer, known = model.layers[module], task.coefficients[module]
    if isinstance(known, PerTask):
        left, right = _fitting(module, pair, (layer.shape.out_features, layer.shape.in_features))
        return PerTask(left.to(model.dtype, copy=True), right.to(model.dtype, copy=True))
    part = part_of(layer, known)
    if part is not None and _rows(pair) == layer.k:
        pair = _own_rows(pair, known.offset, part.k)
    own = part is not None and _rows(pair) == part.k
    left, right = _fitting(module, pair, _rows(pair) if own else layer.k)
    return placed(stored(left, right, model.dtype), known.offset if own else (0, 0), layer.k)


def _rows(pair: CoefficientPair) -> tuple[int, int]:
    return pair[0].shape[0], pair[1].shape[0]


def _fitting(module: str, pair: CoefficientPair, rows: tuple[int, int]) -> CoefficientPair:
    """The pair.

    Raises:
        MismatchError: see ``retrained``.
    """
    left, right = pair
    if _rows(pair) != rows or left.shape[1] != right.shape[1]:
        raise MismatchError(
            f"module {module!r}",
            f"coefficients of {tuple(left.shape)} and {tuple(right.shape)} for bases of {rows}",
            "Train them in this version of the Share model, with phi=0",
        )
    return pair


def _own_rows(
    pair: CoefficientPair, offset: tuple[int, int], k: tuple[int, int]
) -> CoefficientPair:
    """The rows of one subspace, where the others are zero."""
    found = []
    for matrix, first, count in zip(pair, offset, k, strict=True):
        if matrix[:first].any() or matrix[first + count :].any():
            return pair
        found.append(matrix[first : first + count])
    return found[0], found[1]


def _cast_loss(layer: LayerSubspace, value: Coefficients, pair: CoefficientPair) -> float:
    """Frobenius norm of what the cast to the stored dtype took away."""
    left, right = (factor.double().cpu() for factor in pair)
    if isinstance(value, PerTask):
        return _distance(layer, PerTask(left, right), value)
    offset = (0, 0) if _rows(pair) == layer.k else value.offset
    return _distance(layer, placed(Core(left @ right.mT), offset, layer.k), value)


def _distance(layer: LayerSubspace, old: Coefficients, new: Coefficients) -> float:
    """Frobenius norm of the difference of two updates of one module, both private or both not."""
    return float(frame_difference(_framed(layer, old), _framed(layer, new))[0])


def _framed(layer: LayerSubspace, value: Coefficients) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(value, PerTask):
        core = torch.eye(value.left.shape[1], dtype=torch.float64)
        return value.left, value.right, core[None]
    return layer.left_basis, layer.right_basis, dense_cores([value], layer)
