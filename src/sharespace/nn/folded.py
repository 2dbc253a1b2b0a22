"""Few tasks in a batch: their own factors side by side are narrower than the bases."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.nn.stacks import BASE_SLOT, Stack

_MULTIPLE = 16
"""Columns that a product is rounded up to: MKL takes twice as long for 8 columns as for 16."""
_WORTH = 0.75
"""So much of the work with the bases may be left, or folding is not worth its trouble."""


@dataclass(frozen=True, eq=False)
class Folded:
    """The tasks' factors beta E_i and alpha F_i, columns of all tasks side by side.

    ::

        dW_i x = [beta E_1, beta E_2, ...] (mask_i * ([alpha F_1, alpha F_2, ...]^T x))

    It stands in for the ``Stack`` that it was made of, for these slots only; private updates are
    columns like the others.
    """

    left_basis: Tensor
    """n x m."""
    right_basis: Tensor
    """d x (m, rounded up; zeros)."""
    mask: Tensor | None
    """[slots, 1, m]: which columns are a slot's own; None: all rows are of one task."""

    def coordinates(self, hidden: Tensor, slots: Tensor) -> Tensor:
        """Zero where a column is another task's; see ``Stack.coordinates``."""
        mine = hidden[..., : self.left_basis.shape[1]]
        return mine if self.mask is None else mine * self.mask[slots]


def folded(stack: Stack, slots: Collection[int], tokens: int) -> Folded | None:
    """The factors of these slots; None where the bases are as fast.

    Args:
        stack: of one module.
        slots: different ones; may contain the base model's.
        tokens: positions in the pass; few do not pay for the folding.
    """
    widths = {slot: stack.width(slot) for slot in sorted(slots) if slot != BASE_SLOT}
    m = sum(widths.values())
    if m == 0 or not _worth(stack, m, tokens):
        return None
    pairs = [stack.pair(slot) for slot, width in widths.items() if width]
    left, right = (torch.cat(side, dim=1) for side in zip(*pairs, strict=True))
    more = min(-m % _MULTIPLE, max(stack.right_basis.shape[1] - m, 0))
    right = torch.nn.functional.pad(right, (0, more))
    return Folded(left, right, _mask(stack, widths) if len(slots) > 1 else None)


def _worth(stack: Stack, m: int, tokens: int) -> bool:
    (n, k_left), (d, k_right) = stack.left_basis.shape, stack.right_basis.shape
    whole = n * k_left + d * k_right
    narrow = n * m + d * min(m + -m % _MULTIPLE, max(k_right, m))
    return narrow <= _WORTH * whole and tokens * (whole - narrow) >= whole * m


def _mask(stack: Stack, widths: dict[int, int]) -> Tensor:
    mask = stack.left.new_zeros(len(stack.left), 1, sum(widths.values()))
    begin = 0
    for slot, width in widths.items():
        mask[slot, 0, begin : begin + width] = 1
        begin += width
    return mask
