"""Exact merging: enlarge a basis so that newcomers fit, without touching what is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg.canonical import Updates, canonicalise
from sharespace.linalg.truncated import orthonormal

_COLUMNS = 1 << 12
"""Directions of tasks that are folded into a triangle at once."""


@dataclass(frozen=True, eq=False)
class NewDirections:
    """Orthonormal directions that columns need beyond a basis, decomposed once for any number."""

    basis: Tensor
    found: Tensor
    """float64, n x m: orthonormal directions outside, leading first."""
    tails: Tensor
    """float64 [m]: energy of each and of those after it."""

    @classmethod
    def of(cls, basis: Tensor, frame: Tensor) -> NewDirections:
        """Of a frame's columns, weighed so that one task's energy is 1.

        Args:
            basis: n x k, orthonormal columns.
            frame: n x m.
        """
        q, r = torch.linalg.qr(_outside(basis.double(), frame.double()))
        u, s, _ = torch.linalg.svd(r, full_matrices=False)
        return cls(basis, q @ u, s.square().flip(0).cumsum(0).flip(0))

    def beyond(self, dropped: float) -> Tensor:
        """Those that are needed, n x k', orthogonal to the basis, leading first.

        Args:
            dropped: directions are left out while their energy together is at most this, so a
                frame that lies in the span adds none.
        """
        n, k = self.basis.shape
        keep = min(int((self.tails > dropped).sum()), max(n - k, 0))
        found = _outside(self.basis.double(), self.found[:, :keep])
        return orthonormal(found).to(self.basis.dtype)


def _outside(basis: Tensor, columns: Tensor) -> Tensor:
    """The part orthogonal to the basis; twice is enough (Kahan)."""
    for _ in range(2):
        columns = columns - basis @ (basis.mT @ columns)
    return columns


@dataclass(frozen=True, eq=False)
class Framed:
    """Tasks in orthonormal coordinates: dW_i = left (core dW_i) right^T, frames in float64."""

    left: Tensor
    """n x m, orthonormal columns."""
    right: Tensor
    """d x m', orthonormal columns."""
    core: Updates
    """The updates as m x m' matrices, in canonical form; float64, or the dtype of the many tasks
    that were read out of core."""
    factors: tuple[tuple[Tensor, Tensor], ...] = ()
    """Where they are known: (m x r, m' x r) of each task, split between the sides as it came."""

    def weighed(self, weights: Tensor, p: int | None = None) -> tuple[Tensor, Tensor]:
        """Left and right frames whose columns carry the tasks' weighed energy (n x m, d x m').

        Only of each task's p leading directions: no other can be in its best core of rank p.
        """
        kept = torch.ones(len(weights), max(self.core.ranks, default=0)).to(weights)
        kept[:, p:] = 0.0 if p is not None else 1.0
        columns = self.core.sigma * self.core.rows(weights[:, None] * kept)
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


def framed_updates(updates: Updates, pairs: Sequence[tuple[Tensor, Tensor]] = ()) -> Framed:
    """Updates in coordinates of the orthonormalised stack of their own directions.

    Args:
        pairs: the factors of the same updates (n x r_i, d x r_i), where their split matters.
    """
    left, r_left = torch.linalg.qr(updates.left.double())
    right, r_right = torch.linalg.qr(updates.right.double())
    factors = tuple((left.mT @ up.double(), right.mT @ down.double()) for up, down in pairs)
    core = Updates(r_left, updates.sigma.double(), r_right, updates.ranks)
    return Framed(left, right, core, factors)


def framed_coefficients(
    left_basis: Tensor, right_basis: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]
) -> Framed:
    """Tasks of a subspace in its orthonormalised coordinates.

    A basis cast to 16 bits is orthonormal only to its rounding: with basis = q r, a core C becomes
    r_left C r_right^T in the coordinates of q.

    Args:
        pairs: for each task (E, F), k_left x p and k_right x p.
    """
    left, right = orthonormal(left_basis.double()), orthonormal(right_basis.double())
    r_left, r_right = left.mT @ left_basis.double(), right.mT @ right_basis.double()
    if not pairs:
        return Framed(left, right, Updates(r_left[:, :0], r_left.new_zeros(0), r_right[:, :0], ()))
    factors = tuple((r_left @ e.double(), r_right @ f.double()) for e, f in pairs)
    return Framed(left, right, canonicalise(factors), factors)


def together(old: Framed, new: Framed, left: Tensor, right: Tensor) -> Framed:
    """Both sets of tasks in the coordinates of enlarged bases (n x k', d x k')."""
    turns = [(left.mT @ part.left, right.mT @ part.right) for part in (old, new)]
    core = _moved((old.core, new.core), turns)
    factors = tuple(
        (to_left @ e, to_right @ f)
        for part, (to_left, to_right) in zip((old, new), turns, strict=True)
        for e, f in part.factors
    )
    return Framed(left, right, core, factors)


def _moved(cores: Sequence[Updates], turns: Sequence[tuple[Tensor, Tensor]]) -> Updates:
    """Each set of tasks turned, one after the other, float64; no more in memory than the result."""
    ranks = tuple(r for core in cores for r in core.ranks)
    left, right = (turn.new_empty(sum(ranks), len(turn)) for turn in turns[0])
    at = 0
    for core, (to_left, to_right) in zip(cores, turns, strict=True):
        for _, part in core.slices():
            end = at + len(part.sigma)
            left[at:end] = part.left.mT.to(to_left) @ to_left.mT
            right[at:end] = part.right.mT.to(to_right) @ to_right.mT
            at = end
    sigma = torch.cat([core.sigma.to(left) for core in cores])
    return Updates(left.mT, sigma, right.mT, ranks)
