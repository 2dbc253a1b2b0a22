"""Tasks in coordinates of frames: enlarging a basis for newcomers, and errors between two frames.

A frame has linearly independent columns, one side of a pair; only where it says so they are
orthonormal. Two uses meet here (docs/method.md, "Exact merge in core space" and "Error, exactly").
A merge enlarges a basis so that newcomers fit, without touching what is there. And what tasks lose
between two frames is the norm of a difference of cores in coordinates that hold both, not a
difference of squares: that has a floor of sqrt(eps), 3e-4 in float32; these are exact to eps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg.truncated import orthonormal
from sharespace.linalg.updates import CanonicalUpdates, canonicalise

_COLUMNS = 1 << 12
"""Directions of tasks that are folded into a triangle at once."""


@dataclass(frozen=True, eq=False)
class FramedTasks:
    """Tasks in orthonormal coordinates: dW_i = left (core dW_i) right^T, frames in float64."""

    left: Tensor
    """n x m, orthonormal columns."""
    right: Tensor
    """d x m', orthonormal columns."""
    core: CanonicalUpdates
    """The updates as m x m' matrices, in canonical form; float64, or the dtype of the many tasks
    that were read out of core."""
    factors: tuple[tuple[Tensor, Tensor], ...] = ()
    """Where they are known: (m x r, m' x r) of each task, split between the sides as it came."""

    def weighed(self, weights: Tensor, p: int | None = None) -> tuple[Tensor, Tensor]:
        """Left and right frames whose columns carry the tasks' weighed energy (n x m, d x m').

        Args:
            weights: float64 [tasks], w_i.
            p: only each task's p leading directions count, because no other can be in its best
                core of rank p.
        """
        # Zeros and not fewer columns: tasks of different rank stay in one stack.
        leading = torch.ones(len(weights), max(self.core.ranks, default=0)).to(weights)
        leading[:, p:] = 0.0 if p is not None else 1.0
        columns = self.core.sigma * self.core.rows(weights[:, None] * leading)
        return (
            self.left @ _square_root(self.core.left, columns),
            self.right @ _square_root(self.core.right, columns),
        )


def _square_root(directions: Tensor, gains: Tensor) -> Tensor:
    """A matrix of at most m columns with the same Gram columns columns^T as the directions (m x c)
    times their gains.

    By QR: the square root of an eigh of the Gram has noise of sqrt(eps), which a merge in float64
    would take for new directions. Folded block by block, so that many take no memory.
    """
    r = gains.new_zeros(0, directions.shape[0])
    for start in range(0, len(gains), _COLUMNS):
        some = slice(start, start + _COLUMNS)
        rows = directions[:, some].mT.to(gains) * gains[some, None]
        r = torch.linalg.qr(torch.cat([r, rows]), mode="r")[1]
    return r.mT


def framed_updates(
    updates: CanonicalUpdates, pairs: Sequence[tuple[Tensor, Tensor]] = ()
) -> FramedTasks:
    """Updates in coordinates of the orthonormalised stack of their own directions.

    Args:
        updates: dW_i = Y_i S_i Z_i^T.
        pairs: the factors of the same updates (n x r_i, d x r_i), where their split matters.
    """
    left, r_left = torch.linalg.qr(updates.left.double())
    right, r_right = torch.linalg.qr(updates.right.double())
    factors = tuple((left.mT @ up.double(), right.mT @ down.double()) for up, down in pairs)
    core = CanonicalUpdates(r_left, updates.sigma.double(), r_right, updates.ranks)
    return FramedTasks(left, right, core, factors)


def framed_coefficients(
    left_basis: Tensor, right_basis: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]
) -> FramedTasks:
    """Tasks of a subspace in its orthonormalised coordinates.

    A basis cast to 16 bits is orthonormal only to its rounding: with L = Q Theta, a core C becomes
    Theta_L C Theta_R^T in the coordinates of Q.

    Args:
        left_basis: L, n x k_left, as it is stored.
        right_basis: R, d x k_right.
        pairs: for each task (E_i, F_i), k_left x p and k_right x p.
    """
    left, right = orthonormal(left_basis.double()), orthonormal(right_basis.double())
    # Not the triangle of the QR, whose signs ``orthonormal`` has changed.
    theta_left, theta_right = left.mT @ left_basis.double(), right.mT @ right_basis.double()
    if not pairs:
        nothing = CanonicalUpdates(
            theta_left[:, :0], theta_left.new_zeros(0), theta_right[:, :0], ()
        )
        return FramedTasks(left, right, nothing)
    factors = tuple((theta_left @ e.double(), theta_right @ f.double()) for e, f in pairs)
    return FramedTasks(left, right, canonicalise(factors), factors)


def in_enlarged_bases(
    known: FramedTasks, newcomers: FramedTasks, left: Tensor, right: Tensor
) -> FramedTasks:
    """Both sets of tasks in the coordinates of enlarged bases, the known ones first.

    Args:
        known: tasks of the subspace.
        newcomers: tasks that enter it.
        left: [L, N], n x k', orthonormal columns that span all of both.
        right: [R, N'], d x k''.
    """
    turns = [(left.mT @ tasks.left, right.mT @ tasks.right) for tasks in (known, newcomers)]
    core = _turned((known.core, newcomers.core), turns)
    factors = tuple(
        (to_left @ e, to_right @ f)
        for tasks, (to_left, to_right) in zip((known, newcomers), turns, strict=True)
        for e, f in tasks.factors
    )
    return FramedTasks(left, right, core, factors)


def _turned(
    cores: Sequence[CanonicalUpdates], turns: Sequence[tuple[Tensor, Tensor]]
) -> CanonicalUpdates:
    """Each set of tasks turned, one after the other, float64; no more in memory than the result."""
    ranks = tuple(r for core in cores for r in core.ranks)
    left, right = (turn.new_empty(sum(ranks), len(turn)) for turn in turns[0])
    start = 0
    for core, (to_left, to_right) in zip(cores, turns, strict=True):
        for _, part in core.slices():
            end = start + len(part.sigma)
            left[start:end] = part.left.mT.to(to_left) @ to_left.mT
            right[start:end] = part.right.mT.to(to_right) @ to_right.mT
            start = end
    sigma = torch.cat([core.sigma.to(left) for core in cores])
    return CanonicalUpdates(left.mT, sigma, right.mT, ranks)


@dataclass(frozen=True, eq=False)
class NewDirections:
    """N: orthonormal directions that columns need beyond a basis, decomposed once for any number
    of them."""

    basis: Tensor
    """L, n x k."""
    outside: Tensor
    """float64, n x m: orthonormal directions outside of the basis, leading first."""
    tails: Tensor
    """float64 [m]: energy of each and of those after it."""

    @classmethod
    def of(cls, basis: Tensor, frame: Tensor) -> NewDirections:
        """Of a frame's columns, weighed so that one task's energy is 1.

        Args:
            basis: L, n x k, orthonormal columns.
            frame: n x m, as ``FramedTasks.weighed`` gives it.
        """
        q, r = torch.linalg.qr(_orthogonal_part(basis.double(), frame.double()))
        u, s, _ = torch.linalg.svd(r, full_matrices=False)
        return cls(basis, q @ u, s.square().flip(0).cumsum(0).flip(0))

    def beyond(self, dropped: float) -> Tensor:
        """Those that are needed, n x k', orthogonal to the basis, leading first.

        Args:
            dropped: directions are left out while their energy together is at most this, so a
                frame that lies in the span adds none.
        """
        n, k = self.basis.shape
        needed = min(int((self.tails > dropped).sum()), max(n - k, 0))
        # Once more: a faint direction was orthogonal to the basis only to the rounding of the
        # strongest, which is much where it has length 1 now.
        directions = _orthogonal_part(self.basis.double(), self.outside[:, :needed])
        return orthonormal(directions).to(self.basis.dtype)


def _orthogonal_part(basis: Tensor, columns: Tensor) -> Tensor:
    """The part of the columns orthogonal to the basis."""
    # Twice is enough (Kahan, in Parlett, The Symmetric Eigenvalue Problem, section 6.9).
    for _ in range(2):
        columns = columns - basis @ (basis.mT @ columns)
    return columns


@dataclass(frozen=True, eq=False)
class FrameChange:
    """New frames in coordinates of old ones: their part inside the old span, and that outside."""

    left: Tensor
    """float64, (m + k) x k: m rows for the inside, below them the triangle of the outside."""
    right: Tensor
    """(m' + k') x k'."""
    m: tuple[int, int]
    """Columns of the old frames, (m, m')."""

    @classmethod
    def of(cls, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> FrameChange:
        """From the frames themselves.

        Args:
            old: n x m and d x m', orthonormal to float64.
            new: n x k and d x k'.
        """
        left, right = (_in_old(*pair) for pair in zip(old, new, strict=True))
        return cls(left, right, (old[0].shape[1], old[1].shape[1]))

    def differences(
        self, old: CanonicalUpdates, left: Tensor, right: Tensor
    ) -> tuple[Tensor, Tensor]:
        """|dW_i - L' E_i F_i^T R'^T| for every task, and the norm of the part of the latter
        outside of the old frames.

        Norms of differences, not differences of energies; never more than (p + r) columns a task.

        Args:
            old: the tasks in the old frames; its dtype computes.
            left: tasks x p x k: E_i^T in the new left frame.
            right: tasks x p x k': F_i^T.
        """
        new_left, new_right = left @ self.left.mT.to(left), right @ self.right.mT.to(right)
        inside_left, outside_left = new_left[..., : self.m[0]], new_left[..., self.m[0] :]
        inside_right, outside_right = new_right[..., : self.m[1]], new_right[..., self.m[1] :]
        sigma = old.blocks(old.sigma)[..., None]
        rows_left = torch.cat([inside_left, -sigma * old.blocks(old.left.mT)], dim=1)
        rows_right = torch.cat([inside_right, old.blocks(old.right.mT)], dim=1)
        within = (rows_left.mT @ rows_right).double().square().sum((1, 2))
        stray = _product_energy(inside_left, outside_right)
        stray = stray + _product_energy(outside_left, new_right)
        return (within + stray).sqrt(), stray.sqrt()


def _in_old(old: Tensor, new: Tensor) -> Tensor:
    """(m + k) x k: a new frame inside of an old one, and the triangle of what is outside."""
    new = new.to(old)
    inside = old.mT @ new
    rest = new - old @ inside
    # As in ``_orthogonal_part``, where what the second step finds is not thrown away.
    again = old.mT @ rest
    outside = torch.linalg.qr(rest - old @ again, mode="r")[1]
    return torch.cat([inside + again, outside])


def _product_energy(left: Tensor, right: Tensor) -> Tensor:
    """|left_i^T right_i|^2 of p rows a task. From the product itself: in one of Gram matrices what
    cancels over the rows would leave sqrt(eps)."""
    # Squares in float64: in float32 those of updates below 1e-19 are 0, and above 1e19 infinite.
    return (left.mT @ right).double().square().sum((1, 2))


@dataclass(frozen=True, eq=False)
class FrameSplit:
    """One side of some tasks, split by a frame into what is inside and what is not."""

    inside: Tensor
    """float64, tasks x r x k: Y_i^T Q, Q an orthonormal basis of the frame."""
    outside: Tensor
    """float64, tasks x r x r: Gram matrix of what of Y_i is not in the frame."""


@dataclass(frozen=True, eq=False)
class FactoredFrame:
    """A frame (n x k, not necessarily orthonormal) as Q R."""

    q: Tensor
    """n x k, orthonormal columns."""
    r: Tensor
    """float64, k x k, triangular."""

    @classmethod
    def of(cls, frame: Tensor, dtype: torch.dtype) -> FactoredFrame:
        """In the dtype that computes."""
        q, r = torch.linalg.qr(frame.to(dtype))
        return cls(q, r.double())

    def split(self, updates: CanonicalUpdates) -> FrameSplit:
        """The left side of tasks."""
        rows = updates.left.mT
        seen = rows @ self.q
        # The hidden part itself, before its Gram: I - seen seen^T would be a difference of squares.
        hidden = updates.blocks(torch.addmm(rows, seen, self.q.mT, alpha=-1))
        return FrameSplit(updates.blocks(seen).double(), (hidden @ hidden.mT).double())


def errors(updates: CanonicalUpdates, left: Tensor, right: Tensor, cores: Tensor) -> Tensor:
    """|dW_i - left C_i right^T| for every task, without an n x d matrix.

    Args:
        updates: the tasks, dW_i = Y_i S_i Z_i^T.
        left: n x k_left frame, L; need not be orthonormal (a basis cast to 16 bits is not).
        right: d x k_right frame, R.
        cores: tasks x k_left x k_right, C_i.

    Returns:
        float64 [tasks], absolute Frobenius norms.
    """
    dtype = updates.left.dtype
    frames = FactoredFrame.of(left, dtype), FactoredFrame.of(right, dtype)
    parts = [updates.sigma.new_zeros(0, dtype=torch.float64)]
    for tasks, part in updates.slices():
        splits = frames[0].split(part), frames[1].split(part.flipped)
        parts.append(split_errors(part, frames, splits, cores[tasks]))
    return torch.cat(parts)


def split_errors(
    updates: CanonicalUpdates,
    frames: tuple[FactoredFrame, FactoredFrame],
    splits: tuple[FrameSplit, FrameSplit],
    cores: Tensor,
) -> Tensor:
    """``errors`` of tasks that are split by the frames already.

    With both sides split into inside and outside, dW_i has four blocks that are orthogonal to each
    other. The core changes the inner one alone; the others are lost as they are.
    """
    left, right = splits
    sigma = updates.blocks(updates.sigma.double())
    scaled = left.inside.mT * sigma[:, None]
    inner = scaled @ right.inside - frames[0].r @ cores.double() @ frames[1].r.mT
    return (inner.square().sum((1, 2)) + energies_outside(updates, splits)).sqrt()


def energies_outside(updates: CanonicalUpdates, splits: tuple[FrameSplit, FrameSplit]) -> Tensor:
    """float64 [tasks]: energy of each task that is not in both frames; no core can keep it."""
    left, right = splits
    sigma = updates.blocks(updates.sigma.double())
    outer_left, outer_right = left.outside * _outer(sigma), right.outside * _outer(sigma)
    seen_left, seen_right = left.inside @ left.inside.mT, right.inside @ right.inside.mT
    cross = (seen_left * outer_right).sum((1, 2)) + (outer_left * seen_right).sum((1, 2))
    rest = (outer_left * right.outside).sum((1, 2))
    # Sums of products of Gram matrices are not negative but for rounding.
    return cross.clamp_min(0) + rest.clamp_min(0)


def _outer(sigma: Tensor) -> Tensor:
    return sigma[:, :, None] * sigma[:, None]


def frame_difference(
    old: tuple[Tensor, Tensor, Tensor], new: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """|L C_i R^T - L' C'_i R'^T| for every task.

    Args:
        old: (L, n x k; R, d x k'; C_i, tasks x k x k').
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
    # Both in one QR, so that what they have in common cancels in coordinates, to eps of the frames.
    both = torch.cat([old.double(), new.double()], dim=1)
    r = torch.linalg.qr(both, mode="r")[1]
    k = old.shape[1]
    return r[:k, :k], r[:k, k:], r[k:, k:]
