"""Slots whose coefficients are of some directions only: where families have their own subspaces."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.subspace.state import Core, Factors, LayerSubspace

LEFT, RIGHT = 0, 1


@dataclass(frozen=True, eq=False)
class Windows:
    """One window of the directions a side for each slot.

    A family's coefficients are zero outside of its own subspace, so slots need not be as wide as
    the bases of all families together.
    """

    begin: Tensor
    """int64 [2, slots]: first (left, right) direction of a slot's window."""
    sizes: tuple[int, int]
    """Directions of a window: those of the largest subspace."""
    k: tuple[int, int]
    """Of the layer."""

    @classmethod
    def of(cls, layer: LayerSubspace, slots: int, device: torch.device | str) -> Windows | None:
        """None: the layer has one subspace."""
        if not layer.parts:
            return None
        sizes = max(left for left, _ in layer.parts), max(right for _, right in layer.parts)
        return cls(torch.zeros(2, slots, dtype=torch.long, device=device), sizes, layer.k)

    def fits(self, value: Factors | Core) -> bool:
        """Whether the coefficients are in one window; those of several subspaces are not."""
        return all(used <= size for used, size in zip(value.used, self.sizes, strict=True))

    def move(self, slot: int, begin: tuple[int, int]) -> None:
        """Set where a slot's window begins."""
        self.begin[:, slot] = torch.tensor(begin).to(self.begin)

    def cut(self, matrix: Tensor, side: int, begin: int) -> Tensor:
        """The rows of a window, zeros where it ends after the last."""
        found = matrix[begin : begin + self.sizes[side]]
        return torch.nn.functional.pad(found, (0, 0, 0, self.sizes[side] - len(found)))

    def take(self, hidden: Tensor, slots: Tensor) -> Tensor:
        """[rows, positions, k_right] -> those of each row's window."""
        index = self.index(RIGHT, slots)[:, None].expand(-1, hidden.shape[1], -1)
        return hidden.gather(2, index)

    def spread(self, hidden: Tensor, slots: Tensor, side: int = LEFT) -> Tensor:
        """[rows, positions, window] -> [rows, positions, k], zero outside of the window."""
        result = hidden.new_zeros(*hidden.shape[:2], self.k[side])
        index = self.index(side, slots)[:, None].expand(-1, hidden.shape[1], -1)
        # Added, because indices are there twice where a window ends after the last direction.
        return result.scatter_add_(2, index, hidden)

    def index(self, side: int, slots: Tensor) -> Tensor:
        """int64 [rows, window]: directions of the slots' windows."""
        steps = torch.arange(self.sizes[side], device=slots.device)
        return (self.begin[side][slots][:, None] + steps).clamp(max=self.k[side] - 1)
