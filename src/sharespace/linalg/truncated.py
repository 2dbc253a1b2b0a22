"""Leading left singular vectors of a stack of many small blocks, W = [left_i gains_i]_i.

Small problems, and those whose k is near the rank, are decomposed exactly on their smaller side in
float64. Large problems with a small k take block subspace iteration (Halko, Martinsson, Tropp 2011,
SIAM Review 53(2), algorithm 4.4) from a random or a warm start. The textbook fixes the number of
iterations; here it goes on until the captured energy no longer grows, because the spectra of
independently trained adapters are flat and a small fixed number is not enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg.updates import CanonicalUpdates, seen_by

EXACT_SIDE = 192
"""Up to this smaller side the exact decomposition is also the faster one."""
OVERSAMPLING = 8
"""Columns of an iterated block beyond k, at least: the gap that decides how fast it converges is
then the one behind the last of them, not the one behind the k-th."""


@dataclass(frozen=True, eq=False)
class Leading:
    """An orthonormal basis of leading directions, and what it captures."""

    basis: Tensor
    """n x k', leading directions first; k' <= k where the stack's numerical rank is smaller."""
    energies: Tensor
    """float64 [k']: energy (squared singular value) along each direction, descending."""
    seen: Tensor
    """tasks x r x k': Y_i^T basis, what the basis sees of each task; it falls out of the search."""


def leading(
    updates: CanonicalUpdates,
    gains: Tensor,
    k: int,
    *,
    dropped: float,
    start: tuple[Tensor, Tensor] | None = None,
    tol: float = 1e-4,
    max_iterations: int = 24,
    generator: torch.Generator | None = None,
) -> Leading:
    """Top-k left singular vectors of W = [Y_i gains_i]_i.

    Args:
        updates: whose ``left``, [Y_1 ... Y_T] (n x c), is the stack.
        gains: tasks x largest rank x m, zero where a block is shorter: w_i S_i for the HOSVD start,
            w_i S_i Z_i^T R_i for a sweep (docs/method.md, "Method joint").
        k: at most so many directions.
        dropped: trailing directions are left out while their energy together is at most this.
        start: n x k0 orthonormal columns to start from, and what they see of each task (tasks x r
            x k0); the captured energy never falls below what they capture.
        tol: stop when an iteration raises the captured energy by less than this fraction.
        max_iterations: and after so many in any case.
        generator: of the random start.
    """
    n, c = updates.left.shape
    k = min(k, n, c)
    if k == 0 or not bool((gains != 0).any()):
        basis, energies = updates.left[:, :0], torch.zeros(0, dtype=torch.float64)
        return Leading(basis, energies, seen_by(updates, basis))
    side = min(n, c)
    # A block of a quarter of the side costs as much in a few iterations as one decomposition does.
    # A warm start takes one step only (a sweep of ``joint``), which is cheaper for every k.
    if side <= EXACT_SIDE or (start is None and 4 * (k + OVERSAMPLING) >= side):
        exact, energies = _exact(updates, gains)
        basis = exact[:, : leading_count(energies, k, dropped)].to(updates.left.dtype)
        return Leading(basis, energies[: basis.shape[1]], seen_by(updates, basis))
    gains = gains.to(updates.left.dtype)
    if start is None or start[0].shape[1] < k:
        columns = _random_block(updates, gains, k, None if start is None else start[0], generator)
        start = columns, seen_by(updates, columns)
    block = _iterate(updates, gains, start, k, tol, max_iterations)
    keep = leading_count(block.energies, k, dropped)
    return Leading(block.basis[:, :keep], block.energies[:keep], block.seen[..., :keep])


def leading_count(energies: Tensor, k: int, dropped: float) -> int:
    """How many of the leading directions are kept, at most k: trailing ones are left out while
    their energy together is at most ``dropped``."""
    tails = energies.flip(0).cumsum(0).flip(0)
    # Not >=, or directions of no energy at all would be kept where ``dropped`` is 0.
    return min(k, int((tails > dropped).sum()))


def _exact(updates: CanonicalUpdates, gains: Tensor) -> tuple[Tensor, Tensor]:
    """All left singular vectors of the stack and their energies, float64, descending."""
    left = updates.blocks(updates.left.mT.double()).mT
    stack: Tensor = left @ gains.double()
    stack = stack.permute(1, 0, 2).reshape(updates.left.shape[0], -1)
    return _by_svd(stack) if min(stack.shape) <= EXACT_SIDE else _by_gram(stack)


def _by_svd(stack: Tensor) -> tuple[Tensor, Tensor]:
    """By the SVD of the triangle that a QR leaves of the longer side."""
    n, c = stack.shape
    if n > c:
        q, r = torch.linalg.qr(stack)
        u, s, _ = torch.linalg.svd(r, full_matrices=False)
        return q @ u, s.square()
    r = torch.linalg.qr(stack.mT, mode="r")[1]
    u, s, _ = torch.linalg.svd(r.mT, full_matrices=False)
    return u, s.square()


def _by_gram(stack: Tensor) -> tuple[Tensor, Tensor]:
    """By eigenvectors of the Gram matrix on the smaller side, which is faster for large sides."""
    n, c = stack.shape
    gram = stack @ stack.mT if n <= c else stack.mT @ stack
    vectors = torch.linalg.eigh(gram)[1].flip(1)
    # Energies from the vectors: eigenvalues are noise below eps of the first one, and directions
    # that are not there would count as faint ones. Identical float64 adapters once had as many
    # directions as columns.
    pushed = stack.mT @ vectors if n <= c else stack @ vectors
    lengths = torch.linalg.vector_norm(pushed, dim=0)
    if n <= c:
        return vectors, lengths.square()
    # Columns of tiny energy are not accurate after the division; a QR makes them orthonormal
    # again and keeps the span of the leading ones.
    floor = torch.finfo(torch.float64).tiny
    return orthonormal(pushed / lengths.clamp_min(floor)), lengths.square()


def _random_block(
    updates: CanonicalUpdates,
    gains: Tensor,
    k: int,
    start: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """The start, filled up with random mixtures of the stack's columns."""
    n, c = updates.left.shape
    # The k-th direction converges with the ratio of the first singular value behind the block to
    # the k-th. Where the spectrum is flat the textbook's 8 columns more would leave it near 1.
    width = min(k + max(OVERSAMPLING, k // 2), n, c)
    known = 0 if start is None else start.shape[1]
    size = (len(gains), gains.shape[2], max(width - known, 0))
    # Drawn in float32 whatever computes, so that a seed gives the same mixtures in both dtypes.
    mix = torch.randn(*size, generator=generator, dtype=torch.float32).to(gains)
    fresh = updates.left @ updates.rows(gains @ mix)
    return orthonormal(fresh if start is None else torch.cat([start.to(fresh), fresh], dim=1))


def _iterate(
    updates: CanonicalUpdates,
    gains: Tensor,
    start: tuple[Tensor, Tensor],
    k: int,
    tol: float,
    max_iterations: int,
) -> Leading:
    """Subspace iteration, two products with the stack a step; directions by their energy."""
    block, seen = start
    energies, vectors = _ritz(gains, seen)
    for _ in range(max_iterations):
        captured = float(energies[:k].sum())
        mixed = updates.rows(gains @ (gains.mT @ seen))
        # The wide side last: ``left`` is stored column by column.
        block = orthonormal((mixed.mT @ updates.left.mT).mT)
        seen = seen_by(updates, block)
        energies, vectors = _ritz(gains, seen)
        if float(energies[:k].sum()) <= captured * (1 + tol):
            break
    turn = vectors.to(block.dtype)
    return Leading(block @ turn, energies, seen @ turn)


def _ritz(gains: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Energies within a block, descending, and the directions that have them (float64)."""
    flat = (gains.mT @ seen).reshape(-1, seen.shape[2])
    return descending_eigh((flat.mT @ flat).double())


def descending_eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a Gram matrix, descending, and their eigenvectors as columns.

    Eigenvalues below zero are rounding; they come back as 0.
    """
    energies, vectors = torch.linalg.eigh(gram)
    return energies.flip(0).clamp_min(0), vectors.flip(1)


def rayleigh_ritz(test: Tensor, pushed: Tensor) -> tuple[Tensor, Tensor]:
    """Energies along the directions of a test matrix, descending, and the directions (float64).

    Args:
        test: n x l, orthonormal columns.
        pushed: n x l, what the Gram matrix G makes of them, G test.
    """
    inner = test.double().mT @ pushed.double()
    # G test is computed in the compute dtype: test^T G test is symmetric only to its rounding.
    return descending_eigh((inner + inner.mT) / 2)


def sketch_width(k: int, side: int, columns: int) -> int:
    """Columns of a test matrix for k directions: a quarter more than are wanted, at least 8 more;
    no more than the side has rows or the tasks have columns."""
    return min(k + max(8, k // 4), side, max(columns, 1))


def orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the columns that continues their directions.

    QR flips signs; multiplying by sign(diag R) gives columns that were orthonormal back unchanged.
    Without this, old tasks come out wrong after a merge (docs/method.md, "Exact merge in core
    space").
    """
    q, r = torch.linalg.qr(columns)
    # Not torch.sign, which is 0 where a column depends on those before it and would erase it.
    signs: Tensor = torch.where(torch.diagonal(r) < 0, -1.0, 1.0).to(q)
    continued: Tensor = q * signs
    return continued


def orthonormal_float64(columns: Tensor) -> Tensor:
    """An orthonormal basis of the columns in their dtype, by QR in float64; signs are not kept.

    For frames, which are small beside the tasks that are looked at in them.
    """
    q: Tensor = torch.linalg.qr(columns.double())[0]
    return q.to(columns.dtype)


def unit_columns(columns: Tensor) -> Tensor:
    """Columns of length 1; columns of zeros as they are."""
    tiny = torch.finfo(columns.dtype).tiny
    result: Tensor = columns / torch.linalg.vector_norm(columns, dim=0).clamp_min(tiny)
    return result
