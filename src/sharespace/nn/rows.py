"""A module's output with each row's own update: linear layers, Conv1D and convolutions.

::

    y_i = W0 x_i + beta (E_i (F_i^T (alpha^T x_i)))
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sharespace.nn.folded import Folded
from sharespace.nn.stacks import Stack


def with_updates(
    module: nn.Module,
    stack: Stack | Folded | None,
    x: Tensor,
    slots: Tensor,
    private: Mapping[int, tuple[Tensor, Tensor]],
    result: Tensor,
) -> Tensor:
    """The output of the base module and the updates.

    Args:
        module: linear, Conv1D of transformers, or a convolution with any groups.
        stack: its bases, and the coefficients of all slots; None: no row has any.
        x: the module's input, [rows, ..., d] or [rows, channels, ...].
        slots: int64 [rows].
        private: slot -> (P, Q), of rows whose task is outside of the stack.
        result: the module's output.
    """
    if stack is not None:
        x = x.to(stack.left_basis.dtype)
        groups = _groups(module)
        by_group = slots if groups == 1 else slots.repeat_interleave(groups)
        hidden = stack.coordinates(_down(module, x, stack.right_basis), by_group)
        result = _plus(module, result, hidden, stack.left_basis)
    for slot, (left, right) in private.items():
        mine = (slots == slot).nonzero().flatten()
        own = _plus(module, result[mine], _down(module, x[mine].to(right.dtype), right), left)
        result = result.index_copy(0, mine, own)
    return result


def _groups(module: nn.Module) -> int:
    return module.groups if isinstance(module, nn.modules.conv._ConvNd) else 1


def _down(module: nn.Module, x: Tensor, right: Tensor) -> Tensor:
    """right^T x: [rows * groups, positions, k], where a group sees its own channels only."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        return x.reshape(len(x), -1, x.shape[-1]) @ right
    # The same small kernels in every group; the module knows its stride and padding.
    kernel = right.mT.reshape(-1, *module.weight.shape[1:])
    kernel = kernel.repeat(module.groups, *[1] * (kernel.ndim - 1))
    hidden: Tensor = module._conv_forward(x, kernel, None)
    return hidden.reshape(len(x) * module.groups, right.shape[1], -1).mT


def _plus(module: nn.Module, result: Tensor, hidden: Tensor, left: Tensor) -> Tensor:
    """result + left hidden."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        flat, wide = result.reshape(-1, result.shape[-1]), hidden.reshape(-1, hidden.shape[-1])
        if flat.dtype == wide.dtype:
            # One pass over the output: a sum of its own costs more than the products.
            return torch.addmm(flat, wide, left.mT).reshape(result.shape)
        return (flat + (wide @ left.mT).to(flat.dtype)).reshape(result.shape)
    groups = module.groups
    split = hidden.reshape(-1, groups, *hidden.shape[1:])
    update = split @ left.reshape(groups, -1, left.shape[1]).mT
    return result + update.mT.reshape(result.shape).to(result.dtype)
