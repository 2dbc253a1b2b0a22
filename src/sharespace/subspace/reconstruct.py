"""A task back as plain low-rank updates, exactly as stored."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sharespace.linalg.precision import compute_dtype
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.state import Coefficients, Core, Factors, LayerSubspace, ShareModel, Task


def factor_pair(value: Factors | Core) -> tuple[Tensor, Tensor]:
    """(E, F) of a task in coordinates of the subspace; a core is split by its SVD.

    Of a core that uses some of the directions only, the columns are as many as these.
    """
    if isinstance(value, Factors):
        return value.left, value.right
    rows, columns = _block(value)
    u, s, vh = torch.linalg.svd(value.matrix[rows, columns].double(), full_matrices=False)
    root = s.sqrt()
    k_left, k_right = value.matrix.shape
    return _placed(u * root, rows, k_left), _placed(vh.mT * root, columns, k_right)


def _block(value: Core) -> tuple[slice, slice]:
    """The rows and columns of a core between which it is not zero; at least one of each."""
    rows, columns = (
        slice(begin, min(begin + max(used, 1), k))
        for begin, used, k in zip(value.begin, value.used, value.matrix.shape, strict=True)
    )
    return rows, columns


def _placed(matrix: Tensor, rows: slice, k: int) -> Tensor:
    """With zero rows before and after."""
    return torch.nn.functional.pad(matrix, (0, 0, rows.start, k - rows.stop))


def layer_update(layer: LayerSubspace, value: Coefficients) -> LayerUpdate:
    """One module's update: up = left_basis E (n x p), down = (right_basis F)^T (p x d), scaling 1.

    In the compute dtype: a model stored in 16 bits is multiplied out in float32.
    """
    dtype = compute_dtype(layer.left_basis.dtype)
    if not isinstance(value, Factors | Core):
        return LayerUpdate(value.left.to(dtype), value.right.mT.to(dtype))
    e, f = factor_pair(value)
    up = layer.left_basis.double() @ e.double()
    down = (layer.right_basis.double() @ f.double()).mT
    return LayerUpdate(up.to(dtype), down.to(dtype))


def reconstruct(model: ShareModel, name: str) -> Mapping[str, LayerUpdate]:
    """A task's updates by module, in the compute dtype.

    Raises:
        TaskNotFoundError: there is no such task.
    """
    task = model.task(name)
    return {m: layer_update(model.layers[m], c) for m, c in task.coefficients.items()}


def as_adapter(model: ShareModel, task: Task) -> Adapter:
    """A task as an adapter again, read layer by layer; it carries all that came with the task."""
    ranks = {m: rank(c) for m, c in task.coefficients.items()}
    return Adapter(
        name=task.name,
        base=model.base,
        shapes={m: model.layers[m].shape for m in task.coefficients},
        ranks=ranks,
        dtype=model.dtype,
        layer=lambda module: layer_update(model.layers[module], task.coefficients[module]),
        kept=task.kept,
        config=task.config,
        provenance=task.provenance,
        nbytes=task.adapter_bytes,
    )


def rank(value: Coefficients) -> int:
    """Of the update as it is stored."""
    if isinstance(value, Core):
        rows, columns = (int(part.stop - part.start) for part in _block(value))
        return min(rows, columns)
    return value.left.shape[1]
