"""A known task with coefficients that were trained further, in the same bases ("Share-full")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from sharespace.errors import MismatchError
from sharespace.subspace.project import stored
from sharespace.subspace.state import (
    FINETUNE,
    Coefficients,
    Core,
    LayerSubspace,
    Private,
    ShareModel,
)


def retrained(
    model: ShareModel,
    task: str,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    kept: Mapping[str, Tensor],
) -> ShareModel:
    """The model with one task's coefficients and heads replaced; nothing else changes.

    The ledger starts a new segment: the task is now what was trained, so its bound counts only
    what is lost from here on; the bound before stays on record (method.md, "Ledger").

    Args:
        pairs: module -> (E, F), k x p each; for a private update its factors, n x q and d x q.
        kept: what the task carries besides, by the key in the adapter's file.

    Raises:
        TaskNotFoundError: there is no such task.
        MismatchError: a pair does not fit its module's bases, or is of a module the task lacks.
    """
    known = model.task(task)
    new: dict[str, Coefficients] = {}
    lost: dict[str, float] = {}
    for module, (left, right) in pairs.items():
        if module not in known.coefficients:
            raise MismatchError(
                f"module {module!r}", f"task {task!r} does not adapt it", "Leave it out"
            )
        layer = model.layers[module]
        private = isinstance(known.coefficients.get(module), Private)
        new[module] = _stored(module, layer, left, right, private, model)
        lost[module] = _cast_loss(new[module], left, right)
    changed = replace(
        known,
        coefficients={**known.coefficients, **new},
        ledger=known.ledger.with_event(FINETUNE, lost),
        kept={**known.kept, **kept},
    )
    return model.with_tasks(changed if t == task else model.tasks[t] for t in model.tasks)


def _stored(
    module: str,
    layer: LayerSubspace,
    left: Tensor,
    right: Tensor,
    private: bool,
    model: ShareModel,
) -> Coefficients:
    shape = layer.shape
    rows = (shape.out_features, shape.in_features) if private else layer.k
    if (left.shape[0], right.shape[0]) != rows or left.shape[1] != right.shape[1]:
        raise MismatchError(
            f"module {module!r}",
            f"coefficients of {tuple(left.shape)} and {tuple(right.shape)} for bases of {rows}",
            "Train them in this version of the Share model, with phi=0",
        )
    if private:
        return Private(left.to(model.dtype), right.to(model.dtype))
    return stored(left, right, model.dtype)


def _cast_loss(value: Coefficients, left: Tensor, right: Tensor) -> float:
    """Frobenius norm of what the cast to the stored dtype took away."""
    if isinstance(value, Core):
        kept = value.matrix.double()
    else:
        kept = value.left.double() @ value.right.double().mT
    return float((left.double() @ right.double().mT - kept).norm())
