"""A module's output with each row's own update: linear layers, Conv1D and convolutions.

::

    y_i = W0 x_i + beta (E_i (F_i^T (alpha^T x_i)))

Where a task has many positions, its own factors, which are narrower, replace the bases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from sharespace.serve.mixed.stacks import RowTasks, Stack, add_product, changeable

_WORTH = 0.75
"""Own factors are used where they take at most this part of the time that the bases take."""
_NARROW = {4: 4 / 3, 2: 4.0}
"""Bytes of a number -> time of a product with few columns by that of one with as many as a basis
has, a column: where products are fast, reading x and the output is what takes time."""
_COPY = 8
"""Time of copying a number of a row's factors by that of a product with it."""
_FOLD = 2
"""Time of making a number of the factors by that of a product as long."""
_LONG = 4
"""Positions of a row from which on its factors are copied for it."""
_CACHED = 2**18
"""Numbers that are copied at a time on a CPU: they are read again before the cache forgets them."""


@dataclass(frozen=True, eq=False)
class Folded:
    """The tasks' factors beta E_i and alpha F_i, in the order of ``RowTasks.tasks``.

    ::

        dW_i x = beta E_i ((alpha F_i)^T x)                               rows of many positions
        dW_i x = [beta E_1, beta E_2, ...] (mask_i * ([alpha F_1, ...]^T x))     side by side

    It stands in for the ``Stack`` that it was made of, for these slots only; updates stored per
    task are factors like the others.
    """

    left: Tensor
    """[tasks, w, n]; narrower factors end in zeros."""
    right: Tensor
    """[tasks, w, d]."""

    @property
    def left_basis(self) -> Tensor:
        """Side by side, n x (tasks w)."""
        return self.left.flatten(0, 1).mT

    @property
    def right_basis(self) -> Tensor:
        """Side by side, d x (tasks w)."""
        return self.right.flatten(0, 1).mT

    def add(self, out: Tensor, x: Tensor, row_tasks: RowTasks) -> None:
        """Add each row's update to the output of a linear layer.

        Args:
            out: [rows, positions, n].
            x: [rows, positions, d], of the factors' dtype.
            row_tasks: the rows' tasks.
        """
        if not _goes_by_row(len(self.left), x.shape[1], x.element_size()):
            add_product(
                out.flatten(0, 1), self._side_by_side(x, row_tasks), self.left.flatten(0, 1)
            )
            return
        size = len(x)
        if x.device.type == "cpu" and len(self.left) > 1:
            longest = self.left.shape[1] * max(x.shape[2], out.shape[2])
            size = max(1, _CACHED // max(1, longest))
        for first in range(0, len(x), size):
            self._add_by_row(out, x, row_tasks, slice(first, first + size))

    def _add_by_row(self, out: Tensor, x: Tensor, row_tasks: RowTasks, rows: slice) -> None:
        place = row_tasks.place[rows]
        # Factors times columns of x: twice as fast as rows of x times factors.
        hidden = torch.bmm(_of_rows(self.right, place), x[rows].mT)
        if row_tasks.with_task is not None:
            hidden = hidden * row_tasks.with_task[rows, None, None]
        add_product(out[rows], hidden.mT, _of_rows(self.left, place))

    def _side_by_side(self, x: Tensor, row_tasks: RowTasks) -> Tensor:
        """[rows * positions, tasks w]."""
        hidden = self.right.flatten(0, 1) @ x.flatten(0, 1).mT
        if row_tasks.owners is not None:
            split = hidden.view(*self.right.shape[:2], *x.shape[:2])
            hidden = (split * row_tasks.owners[:, None, :, None]).view(hidden.shape)
        return hidden.mT

    def coordinates(self, hidden: Tensor, row_tasks: RowTasks) -> Tensor:
        """Zero where a column is another task's.

        Args:
            hidden: [rows * groups, positions, tasks w].
            row_tasks: the rows' tasks.
        """
        if row_tasks.owners is None:
            return hidden
        mask = row_tasks.owners.mT.repeat_interleave(self.right.shape[1], 1)
        return hidden * mask.repeat_interleave(len(hidden) // len(mask), 0)[:, None]


def _of_rows(factors: Tensor, place: Tensor) -> Tensor:
    """[tasks, w, side] -> [rows, w, side]; of one task without a copy."""
    if len(factors) == 1:
        return factors.expand(len(place), -1, -1)
    return factors.index_select(0, place)


def worth_folding(
    stack: Stack, width: int, tasks: int, sizes: tuple[int, int], by_row: bool
) -> bool:
    """Whether these tasks' own factors, made for one pass, beat the bases.

    Times in products of one position with one column of both sides::

        bases          positions k
        side by side   positions tasks w
        by row         positions w 4/3 + rows w 8 (copies; none of one task); 16 bits: 4 for 4/3
        making them    tasks w k 2, or half of it where they are kept

    Measured on a CPU at 768 to 5,632 features and 1 to 128 positions a row.

    Args:
        stack: of one module.
        width: w, of the widest task.
        tasks: their number.
        sizes: rows, and positions in each.
        by_row: factors can be copied for each row: not for convolutions.
    """
    rows, length = sizes
    k = mean_k(stack)
    columns = float(rows * length * tasks)
    size = stack.left.element_size()
    if by_row and _goes_by_row(tasks, length, size):
        columns = _narrow(size) * rows * length + _COPY * rows * (tasks > 1)
    making = tasks * k * (1 if is_kept(stack, width, tasks) else _FOLD)
    return width * (columns + making) <= _WORTH * rows * length * k


def _goes_by_row(tasks: int, length: int, size: int) -> bool:
    """Rows of that many positions, numbers of that many bytes."""
    return length >= _LONG and tasks >= int(_narrow(size))


def _narrow(size: int) -> float:
    return _NARROW.get(size, _NARROW[4])


def is_kept(stack: Stack, width: int, tasks: int) -> bool:
    """Whether factors are narrow enough to serve any later pass, however short its rows."""
    return width * tasks <= _WORTH * mean_k(stack)


def mean_k(stack: Stack) -> float:
    """Columns of a basis, the mean of both, each by the length of its side."""
    (n, k_left), (d, k_right) = stack.left_basis.shape, stack.right_basis.shape
    return (n * k_left + d * k_right) / (n + d)


# What is kept may be used with gradients, after a pass in inference mode.
@torch.inference_mode(False)
def folded(stack: Stack, row_tasks: RowTasks, width: int) -> Folded:
    """The factors of these tasks, rounded once, to the dtype.

    Args:
        stack: of one module.
        row_tasks: the rows' tasks.
        width: of the widest.
    """
    # The stack has more than ``width`` columns only where all tasks are stored per task here: their
    # slots are zero.
    left = _folded(stack.left_basis, stack.left_of(row_tasks.tasks, width), width)
    taken = stack.right_of(row_tasks.tasks, width)
    if taken is None:
        right = _padded(stack.core_inputs(row_tasks.tasks, width), width)
    else:
        right = _folded(stack.right_basis, taken, width)
    for place, slot in enumerate(row_tasks.numbers):
        if slot in stack.per_task:
            for side, factor in zip((left, right), stack.per_task[slot], strict=True):
                side[place, : factor.shape[1]] = factor.mT
    return Folded(left, right)


def _folded(basis: Tensor, coefficients: Tensor, width: int) -> Tensor:
    """[tasks, p, k] -> [tasks, w, side]."""
    wide = torch.promote_types(basis.dtype, torch.float32)
    made = (coefficients.flatten(0, 1).to(wide) @ basis.mT.to(wide)).to(basis.dtype)
    return _padded(made.view(*coefficients.shape[:2], len(basis)), width)


def _padded(factors: Tensor, width: int) -> Tensor:
    """[tasks, p, side] -> [tasks, width, side]: an update stored per task may be wider than p."""
    missing = width - factors.shape[1]
    return torch.nn.functional.pad(factors, (0, 0, 0, missing)) if missing else factors


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
