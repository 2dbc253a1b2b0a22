"""Errors as norms of core differences in enlarged coordinates, not as differences of squares.

A difference of squares has a floor of sqrt(eps), 3e-4 in float32; these are exact to eps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg.canonical import Updates


@dataclass(frozen=True, eq=False)
class Split:
    """One side of some tasks by a frame."""

    inside: Tensor
    """float64, tasks x r x k: Y_i^T Q, Q an orthonormal basis of the frame."""
    outside: Tensor
    """float64, tasks x r x r: Gram matrix of what of Y_i is not in the frame."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame (n x k, not necessarily orthonormal) as Q R."""

    q: Tensor
    r: Tensor
    """float64, k x k."""

    @classmethod
    def of(cls, frame: Tensor, dtype: torch.dtype) -> Frame:
        """In the dtype that computes."""
        q, r = torch.linalg.qr(frame.to(dtype))
        return cls(q, r.double())

    def split(self, updates: Updates) -> Split:
        """The left side of tasks."""
        rows = updates.left.mT
        seen = rows @ self.q
        hidden = updates.blocks(torch.addmm(rows, seen, self.q.mT, alpha=-1))
        return Split(updates.blocks(seen).double(), (hidden @ hidden.mT).double())


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
    dtype = updates.left.dtype
    frames = Frame.of(left, dtype), Frame.of(right, dtype)
    found = [updates.sigma.new_zeros(0, dtype=torch.float64)]
    for tasks, part in updates.slices():
        splits = frames[0].split(part), frames[1].split(part.flipped)
        found.append(split_errors(part, frames, splits, cores[tasks]))
    return torch.cat(found)


def split_errors(
    updates: Updates, frames: tuple[Frame, Frame], splits: tuple[Split, Split], cores: Tensor
) -> Tensor:
    """``errors`` of tasks that are split by the frames already."""
    left, right = splits
    sigma = updates.blocks(updates.sigma.double())
    scaled = left.inside.mT * sigma[:, None]
    inner = scaled @ right.inside - frames[0].r @ cores.double() @ frames[1].r.mT
    outer_l, outer_r = left.outside * _outer(sigma), right.outside * _outer(sigma)
    seen_l, seen_r = left.inside @ left.inside.mT, right.inside @ right.inside.mT
    cross = (seen_l * outer_r).sum((1, 2)) + (outer_l * seen_r).sum((1, 2))
    rest = (outer_l * right.outside).sum((1, 2))
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
    """Triangular, float64: the old frames in their own span."""
    inside: tuple[Tensor, Tensor]
    """The part of the new frames in the span of the old ones."""
    outside: tuple[Tensor, Tensor]
    """Triangular: their part outside of it."""

    @classmethod
    def of(cls, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> Between:
        """By one QR a side.

        Args:
            old: (left n x k, right d x k').
            new: the same for the new frames.
        """
        (a, b, c), (d, e, f) = (
            _triangles(before, after) for before, after in zip(old, new, strict=True)
        )
        return cls((a, d), (b, e), (c, f))

    def differences(self, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """What became of each task, and the norm of what of it lies outside the old frames.

        Args:
            old: tasks x k x k'.
            new: tasks x k x k' in the new frames.

        Returns:
            float64 [tasks] each: |old - new|, and |new| outside.
        """
        left, wide = self.inside[0] @ new.double(), new.double()
        difference = left @ self.inside[1].mT - _turned(self.old[0], old.double(), self.old[1])
        parts = (
            difference,
            left @ self.outside[1].mT,
            self.outside[0] @ wide @ torch.cat([self.inside[1], self.outside[1]]).mT,
        )
        within, beside, below = (p.flatten(1).square().sum(1) for p in parts)
        return (within + beside + below).sqrt(), (beside + below).sqrt()


def _triangles(old: Tensor, new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    both = torch.cat([old.double(), new.double()], dim=1)
    r = torch.linalg.qr(both, mode="r")[1]
    k = old.shape[1]
    return r[:k, :k], r[:k, k:], r[k:, k:]


def _turned(left: Tensor, cores: Tensor, right: Tensor) -> Tensor:
    """left @ cores @ right^T; quickly where the frames were orthonormal, so that only signs are
    left of them."""
    signs = torch.diagonal(left), torch.diagonal(right)
    identity = tuple(torch.diag_embed(s.sign()) for s in signs)
    if all(m.shape[0] == m.shape[1] for m in (left, right)) and all(
        torch.allclose(m, i, rtol=0, atol=1e-15 * max(m.shape, default=1))
        for m, i in zip((left, right), identity, strict=True)
    ):
        return signs[0][:, None] * cores * signs[1]
    return left @ cores @ right.mT


def _outer(sigma: Tensor) -> Tensor:
    return sigma[:, :, None] * sigma[:, None]
