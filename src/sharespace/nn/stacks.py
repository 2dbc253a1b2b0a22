"""Coefficients of many tasks of one module, stacked, so that each row of a batch takes its own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sharespace.subspace.reconstruct import factor_pair
from sharespace.subspace.state import Coefficients, Core, LayerSubspace, Private

BASE_SLOT = 0
"""Of the base model without any task: its coefficients are zero, for ever."""


@dataclass(eq=False)
class Stack:
    """One module: bases once, and coefficients in numbered slots.

    ::

        dW_i x = beta (E_i (F_i^T (alpha^T x)))      factors, while slots take fewer numbers so
        dW_i x = beta (C_i (alpha^T x))              cores

    alpha^T x and beta(.) are computed once for all rows; only k x p (or k x k) numbers a row are
    gathered. method.md, "Notation".
    """

    left_basis: Tensor
    """beta, n x k_left; a column's numbers lie side by side, which products read fastest."""
    right_basis: Tensor
    """alpha, d x k_right, in the same way."""
    left: Tensor
    """E^T, [slots, p, k_left]; with cores C^T, [slots, k_right, k_left]."""
    right: Tensor | None
    """F^T, [slots, p, k_right]; None: ``left`` holds cores."""
    private: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Slot -> (P, Q), n x q and d x q, of tasks that keep this module outside the subspace."""

    @classmethod
    def empty(
        cls, layer: LayerSubspace, slots: int, dtype: torch.dtype, device: torch.device | str
    ) -> Stack:
        """Slots of p = 0: the base model."""
        k_left, k_right = layer.k
        return cls(
            layer.left_basis.to(device, dtype).mT.contiguous().mT,
            layer.right_basis.to(device, dtype).mT.contiguous().mT,
            torch.zeros(slots, 0, k_left, dtype=dtype, device=device),
            torch.zeros(slots, 0, k_right, dtype=dtype, device=device),
        )

    @property
    def nbytes(self) -> int:
        """Of the slots, without the bases."""
        kept = [self.left, *([] if self.right is None else [self.right])]
        kept += [t for pair in self.private.values() for t in pair]
        return sum(t.numel() * t.element_size() for t in kept)

    def put(self, slot: int, value: Coefficients | None) -> None:
        """Fill a slot; None: the task does not adapt this module."""
        self.private.pop(slot, None)
        self.left[slot] = 0
        if self.right is not None:
            self.right[slot] = 0
        if isinstance(value, Private):
            self.private[slot] = value.left.to(self.left), value.right.to(self.left)
        elif value is not None:
            self._fill(slot, value)

    def _fill(self, slot: int, value: Coefficients) -> None:
        if isinstance(value, Private):
            return
        wanted = min(value.used) if isinstance(value, Core) else value.p
        if self.right is not None and wanted > self.left.shape[1]:
            self._widen(wanted)
        if self.right is None:
            core = value.matrix if isinstance(value, Core) else value.left @ value.right.mT
            self.left[slot] = core.mT.to(self.left)
            return
        e, f = factor_pair(value)
        self.left[slot, : e.shape[1]] = e.mT.to(self.left)
        self.right[slot, : f.shape[1]] = f.mT.to(self.right)

    def _widen(self, p: int) -> None:
        """Slots of pseudo-rank p, or of whole cores where these are smaller."""
        if self.right is None:
            return
        slots, before, k_left = self.left.shape
        k_right = self.right.shape[2]
        if p * (k_left + k_right) >= k_left * k_right:
            self.left, self.right = self.right.mT @ self.left, None
            return
        more = p - before
        self.left = torch.cat([self.left, self.left.new_zeros(slots, more, k_left)], 1)
        self.right = torch.cat([self.right, self.right.new_zeros(slots, more, k_right)], 1)

    def coordinates(self, hidden: Tensor, slots: Tensor) -> Tensor:
        """alpha^T x of each row -> E F^T alpha^T x.

        Args:
            hidden: [rows, positions, k_right].
            slots: int64 [rows].

        Returns:
            [rows, positions, k_left].
        """
        if self.right is not None:
            hidden = torch.bmm(hidden, self.right.index_select(0, slots).mT)
        return torch.bmm(hidden, self.left.index_select(0, slots))

    def width(self, slots: Collection[int]) -> int:
        """Columns of own factors n x w and d x w that hold the update of each of these slots."""
        own = [pair[0].shape[1] for slot, pair in self.private.items() if slot in slots]
        return max([*own, *[int(self.left.shape[1])] * (len(own) < len(slots))])

    @property
    def is_empty(self) -> bool:
        """True where no slot has coefficients of this module."""
        return self.left.shape[1] == 0
