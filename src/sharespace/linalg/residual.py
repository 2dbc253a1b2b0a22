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
    (left, inside_left, outside_left), (right, inside_right, outside_right) = (
        _triangles(before, after) for before, after in zip(old[:2], new[:2], strict=True)
    )
    cores = new[2].double()
    half = inside_left @ cores
    parts = (
        half @ inside_right.mT - left @ old[2].double() @ right.mT,
        half @ outside_right.mT,
        outside_left @ cores @ torch.cat([inside_right, outside_right]).mT,
    )
    within, beside, below = (p.flatten(1).square().sum(1) for p in parts)
    return (within + beside + below).sqrt()


def _triangles(old: Tensor, new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By one QR: the old frame in its own span, the new one inside and outside of it."""
    both = torch.cat([old.double(), new.double()], dim=1)
    r = torch.linalg.qr(both, mode="r")[1]
    k = old.shape[1]
    return r[:k, :k], r[:k, k:], r[k:, k:]


def _outer(sigma: Tensor) -> Tensor:
    return sigma[:, :, None] * sigma[:, None]
