"""What becomes of tasks when they leave orthonormal frames for other ones, in blocks of tasks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg.canonical import Updates


@dataclass(frozen=True, eq=False)
class FrameChange:
    """New frames in coordinates of old ones: their part inside the old span, and that outside."""

    left: Tensor
    """float64, (m + k) x k: m rows for the inside, below them the triangle of the outside."""
    right: Tensor
    """(m' + k') x k'."""
    m: tuple[int, int]

    @classmethod
    def of(cls, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> FrameChange:
        """From the frames themselves.

        Args:
            old: n x m and d x m', orthonormal to float64.
            new: n x k and d x k'.
        """
        left, right = (_coordinates(*pair) for pair in zip(old, new, strict=True))
        return cls(left, right, (old[0].shape[1], old[1].shape[1]))

    def differences(self, old: Updates, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """|dW_i - L' E_i F_i^T R'^T| for every task, and the norm of the part of the latter
        outside of the old frames.

        Norms of differences, not differences of energies; never more than (p + r) columns a task.

        Args:
            old: the tasks in the old frames; its dtype computes.
            left: tasks x p x k: E_i^T in the new left frame.
            right: tasks x p x k'.
        """
        new_left, new_right = left @ self.left.mT.to(left), right @ self.right.mT.to(right)
        inside_left, outside_left = new_left[..., : self.m[0]], new_left[..., self.m[0] :]
        inside_right, outside_right = new_right[..., : self.m[1]], new_right[..., self.m[1] :]
        sigma = old.blocks(old.sigma)[..., None]
        rows_left = torch.cat([inside_left, -sigma * old.blocks(old.left.mT)], dim=1)
        rows_right = torch.cat([inside_right, old.blocks(old.right.mT)], dim=1)
        within = (rows_left.mT @ rows_right).square().sum((1, 2))
        stray = _energy(inside_left, outside_right) + _energy(outside_left, new_right)
        return (within + stray).sqrt(), stray.sqrt()


def _coordinates(old: Tensor, new: Tensor) -> Tensor:
    new = new.to(old)
    inside = old.mT @ new
    rest = new - old @ inside
    again = old.mT @ rest  # twice is enough (Kahan)
    outside = torch.linalg.qr(rest - old @ again, mode="r")[1]
    return torch.cat([inside + again, outside])


def _energy(left: Tensor, right: Tensor) -> Tensor:
    """|left_i^T right_i|^2 of p rows a task. From the product itself: in one of Gram matrices what
    cancels over the rows would leave sqrt(eps)."""
    return (left.mT @ right).square().sum((1, 2))
