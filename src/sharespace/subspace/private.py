"""Tasks outside the subspace, each by its own truncated SVD, beside those inside it.

Under a byte budget every task has what suits it (method.md, consequence 2): a private update, or a
core of its own rank in as many leading directions as pay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sharespace.linalg.canonical import Updates
from sharespace.linalg.menu import Allocation
from sharespace.linalg.residual import errors
from sharespace.shapes import ModuleShape
from sharespace.subspace.parts import placed
from sharespace.subspace.project import Projection, project
from sharespace.subspace.state import Coefficients, LayerSubspace, Private


def private_layer(
    shape: ModuleShape, updates: Updates, ranks: Sequence[int], dtype: torch.dtype
) -> tuple[LayerSubspace, Projection]:
    """A layer without a subspace, every task stored as dW_i ~ P_i Q_i^T of the given rank.

    Args:
        shape: of the module.
        updates: the tasks' updates.
        ranks: columns that each task keeps.
        dtype: stored dtype.
    """
    n, d = shape.out_features, shape.in_features
    layer = LayerSubspace(
        shape, torch.zeros(n, 0, dtype=dtype), torch.zeros(d, 0, dtype=dtype), cap=(0, 0)
    )
    found = [_private(updates, task, keep, dtype) for task, keep in enumerate(ranks)]
    lost = torch.tensor([e for _, e in found], dtype=torch.float64)
    return layer, Projection(tuple(v for v, _ in found), lost)


def project_mixed(updates: Updates, layer: LayerSubspace, chosen: Allocation) -> Projection:
    """Every task as it was chosen: a private update, or a core in the layer's leading directions.

    What a core does not use of the bases are zero rows at its end, which are not stored.
    """
    dtype = layer.left_basis.dtype
    values: dict[int, Coefficients] = {}
    lost = torch.zeros(len(updates.ranks), dtype=torch.float64)
    for (a, b, rank), tasks in groups(chosen).items():
        if a:
            part = leading_part(layer, (a, b))
            found = project(updates.select(tasks), part, rank)
            lost[tasks] = found.lost
            values.update(
                zip(tasks, (placed(v, (0, 0), layer.k) for v in found.coefficients), strict=True)
            )
            continue
        for task in tasks:
            values[task], lost[task] = _private(updates, task, rank, dtype)
    return Projection(tuple(values[i] for i in range(len(values))), lost)


def groups(chosen: Allocation) -> dict[tuple[int, int, int], list[int]]:
    """(left directions, right directions, rank) -> tasks; without directions: private."""
    found: dict[tuple[int, int, int], list[int]] = {}
    parts = (chosen.left.tolist(), chosen.right.tolist(), chosen.rank.tolist())
    for task, (a, b, rank) in enumerate(zip(*parts, strict=True)):
        found.setdefault((a, b, rank), []).append(task)
    return found


def leading_part(layer: LayerSubspace, k: tuple[int, int]) -> LayerSubspace:
    """The layer with its leading directions only."""
    return LayerSubspace(layer.shape, layer.left_basis[:, : k[0]], layer.right_basis[:, : k[1]])


def _private(updates: Updates, task: int, rank: int, dtype: torch.dtype) -> tuple[Private, float]:
    one = updates.select([task])
    value = own_svd(one, rank, dtype)
    return value, _lost(one, value)


def own_svd(update: Updates, rank: int, dtype: torch.dtype) -> Private:
    """The truncated SVD of one task's update, in the stored dtype."""
    root = update.sigma[:rank].sqrt()
    return Private(
        _stored(update.left[:, :rank] * root, dtype), _stored(update.right[:, :rank] * root, dtype)
    )


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)


def _lost(update: Updates, value: Private) -> float:
    device = update.left.device
    core = torch.eye(value.left.shape[1], dtype=torch.float64, device=device)[None]
    left, right = value.left.to(device), value.right.to(device)
    return float(errors(update, left, right, core)[0])
