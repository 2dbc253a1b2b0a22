"""Tasks kept outside the subspace, each by its own truncated SVD (method.md, consequence 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sharespace.linalg.canonical import Updates
from sharespace.linalg.residual import errors
from sharespace.shapes import ModuleShape
from sharespace.subspace.project import Projection
from sharespace.subspace.state import LayerSubspace, Private


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
    values, lost = [], []
    for task, keep in enumerate(ranks):
        one = updates.select([task])
        value = own_svd(one, keep, dtype)
        values.append(value)
        lost.append(_lost(one, value))
    return layer, Projection(tuple(values), torch.tensor(lost, dtype=torch.float64))


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
