"""Errors as norms of core differences in enlarged coordinates, not as differences of squares.

A difference of squares has a floor of sqrt(eps), 3e-4 in float32; these are exact to eps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg.canonical import Updates


def errors(updates: Updates, left: Tensor, right: Tensor, cores: Tensor) -> Tensor:
    """|dW_i - left C_i right^T| for every task, without an n x d matrix.

    Args:
        updates: the tasks, dW_i = Y_i diag(s_i) Z_i^T.
        left: n x k_left frame; need not be orthonormal (a basis cast to 16 bits is not).
        right: d x k_right frame.
        cores: tasks x k_left x k_right.

    Returns:
        float64 [tasks], absolute Frobenius norms.
    """
    inside_l, outside_l, r_left = _split(updates, left)
    inside_r, outside_r, r_right = _split(updates.flipped, right)
    sigma = updates.blocks(updates.sigma.double())
    scaled = inside_l.mT * sigma[:, None]
    inner = scaled @ inside_r - r_left @ cores.double() @ r_right.mT
    outer_l, outer_r = outside_l * _outer(sigma), outside_r * _outer(sigma)
    seen_l, seen_r = inside_l @ inside_l.mT, inside_r @ inside_r.mT
    cross = (seen_l * outer_r).sum((1, 2)) + (outer_l * seen_r).sum((1, 2))
    rest = (outer_l * outside_r).sum((1, 2))
    return (inner.square().sum((1, 2)) + cross.clamp_min(0) + rest.clamp_min(0)).sqrt()


def frame_difference(
    old: tuple[Tensor, Tensor, Tensor], new: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """|L C_i R^T - L' C'_i R'^T| for every task.

    Args:
        old: (left n x k, right d x k', cores tasks x k x k').
        new: the same for the new frames.

    Returns:
        float64 [tasks].
    """
    return Between.of(old[:2], new[:2]).differences(old[2], new[2])[0]


@dataclass(frozen=True, eq=False)
class Between:
    """Two pairs of frames in coordinates common to both, for tasks that come in portions."""

    old: tuple[Tensor, Tensor]
    """Triangular, float64: the old frames (their first rows, they have no others)."""
    new: tuple[Tensor, Tensor]
    """The new frames; rows beyond the old ones' are what lies outside of these."""

    @classmethod
    def of(cls, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> Between:
        """By one QR a side.

        Args:
            old: (left n x k, right d x k').
            new: the same for the new frames.
        """
        parts = []
        for before, after in zip(old, new, strict=True):
            both = torch.cat([before.double(), after.double()], dim=1)
            r = torch.linalg.qr(both, mode="r")[1]
            k = before.shape[1]
            parts.append((r[:k, :k], r[:, k:]))
        return cls((parts[0][0], parts[1][0]), (parts[0][1], parts[1][1]))

    def differences(self, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """What became of each task, and the norm of what of it lies outside the old frames.

        Args:
            old: tasks x k x k'.
            new: tasks x k x k' in the new frames.

        Returns:
            float64 [tasks] each: |old - new|, and |new| outside.
        """
        difference = self.new[0] @ new.double() @ self.new[1].mT
        rows, columns = self.old[0].shape[0], self.old[1].shape[0]
        inside = difference[:, :rows, :columns]
        outside = (difference.square().sum((1, 2)) - inside.square().sum((1, 2))).clamp_min(0)
        # R is triangular: the old tasks have no part below its first rows.
        inside -= self.old[0] @ old.double() @ self.old[1].mT
        norms: Tensor = torch.linalg.vector_norm(difference, dim=(1, 2))
        return norms, outside.sqrt()


def _split(updates: Updates, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a frame sees of each task (tasks x r x k), the Gram of what it does not, and its R."""
    q, r = torch.linalg.qr(frame.to(updates.left.dtype))
    seen = updates.left.mT @ q
    hidden = updates.blocks(torch.addmm(updates.left.mT, seen, q.mT, alpha=-1))
    return updates.blocks(seen).double(), (hidden @ hidden.mT).double(), r.double()


def _outer(sigma: Tensor) -> Tensor:
    return sigma[:, :, None] * sigma[:, None]
