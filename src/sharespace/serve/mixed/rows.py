"""A module's output with each row's own update: linear layers, Conv1D and convolutions.

::

    y_i = W0 x_i + beta (E_i (F_i^T (alpha^T x_i)))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

from torch import Tensor, nn

from sharespace.serve.mixed.folded import Folded
from sharespace.serve.mixed.row_layout import RowTasks, add_product, changeable
from sharespace.serve.mixed.stacks import Stack


def with_updates(
    module: nn.Module,
    stack: Stack | None,
    x: Tensor,
    slots: Tensor,
    per_task: Mapping[int, tuple[Tensor, Tensor]],
    result: Tensor,
) -> Tensor:
    """The output of the base module and the updates.

    Args:
        module: linear, Conv1D of transformers, or a convolution with any groups.
        stack: its bases, and the coefficients of all slots; None: no row has any.
        x: the module's input, [rows, ..., d] or [rows, channels, ...].
        slots: int64 [rows].
        per_task: slot -> (P, Q), of rows whose task is outside of the stack.
        result: the module's output, which is changed itself where it needs no gradients.
    """
    out = changeable(result, rows=not is_convolution(module))
    if stack is not None:
        x = x.to(stack.left_basis.dtype)
        groups = module.groups if is_convolution(module) else 1
        by_group = slots if groups == 1 else slots.repeat_interleave(groups)
        hidden = stack.coordinates(_down(module, x, stack.right_basis), by_group)
        _add(module, out, hidden, stack.left_basis)
    for slot, (left, right) in per_task.items():
        own_rows = (slots == slot).nonzero().flatten()
        own = out[own_rows]
        _add(module, own, _down(module, x[own_rows].to(right.dtype), right), left)
        out.index_copy_(0, own_rows, own)
    return out


def with_own(
    module: nn.Module, narrow: Folded, x: Tensor, row_tasks: RowTasks, result: Tensor
) -> Tensor:
    """The output of the base module and the updates, with the tasks' own factors.

    Args:
        module: linear, Conv1D of transformers, or a convolution with any groups.
        narrow: the factors of the rows' tasks.
        x: the module's input, [rows, ..., d] or [rows, channels, ...].
        row_tasks: the rows' tasks.
        result: the module's output, which is changed itself where it needs no gradients.
    """
    x, out = x.to(narrow.left.dtype), changeable(result, rows=not is_convolution(module))
    if is_convolution(module):
        hidden = narrow.coordinates(_down(module, x, narrow.right_basis), row_tasks)
        _add(module, out, hidden, narrow.left_basis)
    else:
        flat = x.reshape(len(x), -1, x.shape[-1])
        narrow.add(out.view(*flat.shape[:2], out.shape[-1]), flat, row_tasks)
    return out


def is_convolution(module: nn.Module) -> TypeGuard[nn.modules.conv._ConvNd]:
    """Of any number of dimensions."""
    return isinstance(module, nn.modules.conv._ConvNd)


def _down(module: nn.Module, x: Tensor, right: Tensor) -> Tensor:
    """right^T x: [rows * groups, positions, k], where a group sees its own channels only."""
    if not is_convolution(module):
        return x.reshape(len(x), -1, x.shape[-1]) @ right
    # The same small kernels in every group; the module knows its stride and padding.
    kernel = right.mT.reshape(-1, *module.weight.shape[1:])
    kernel = kernel.repeat(module.groups, *[1] * (kernel.ndim - 1))
    hidden: Tensor = module._conv_forward(x, kernel, None)
    return hidden.reshape(len(x) * module.groups, right.shape[1], -1).mT


def _add(module: nn.Module, out: Tensor, hidden: Tensor, left: Tensor) -> None:
    """out += left hidden."""
    if not is_convolution(module):
        wide = hidden.reshape(-1, hidden.shape[-1])
        add_product(out.view(-1, out.shape[-1]), wide, left.mT)
        return
    groups = module.groups
    split = hidden.reshape(-1, groups, *hidden.shape[1:])
    # In the layout of the output: channels before positions.
    update = left.reshape(groups, -1, left.shape[1]) @ split.mT
    out.add_(update.reshape(out.shape).to(out.dtype))
