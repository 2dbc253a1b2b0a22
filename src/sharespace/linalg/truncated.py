"""Leading left singular vectors of a stack of many small blocks, [left_i @ gains_i]_i.

Small problems (or a k near the rank): exactly, by one decomposition on the smaller side in float64.
Large ones with a small k: block subspace iteration from a random or a warm start, until the
captured energy no longer grows; a fixed number of iterations is not enough, the spectra of
unrelated adapters are flat.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg.updates import CanonicalUpdates, seen_by

EXACT_SIDE = 192
"""Up to this smaller side the exact way is also the faster one."""
OVERSAMPLING = 8


@dataclass(frozen=True, eq=False)
class Leading:
    """The answer: an orthonormal basis and what it captures."""

    basis: Tensor
    """n x k', leading directions first; k' <= k where the stack's numerical rank is smaller."""
    energies: Tensor
    """float64 [k']: energy (squared singular value) along each direction."""
    seen: Tensor
    """tasks x r x k': what the basis sees of each task; it falls out of the search."""


def leading(
    updates: CanonicalUpdates,
    gains: Tensor,
    k: int,
    *,
    dropped: float,
    start: Tensor | None = None,
    seen: Tensor | None = None,
    tol: float = 1e-4,
    max_iterations: int = 24,
    generator: torch.Generator | None = None,
) -> Leading:
    """Top-k left singular vectors of W = [left_i @ gains_i]_i.

    Args:
        updates: whose ``left`` (n x c) is the stack.
        gains: tasks x largest rank x m, zero where a block is shorter.
        k: at most so many directions.
        dropped: trailing directions are left out while their energy together is at most this.
        start: n x k0 orthonormal columns to start from; the captured energy never falls below
            what they capture.
        seen: what ``start`` sees of each task, where it is known, to save its cost.
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
    if side <= EXACT_SIDE or (start is None and 4 * (k + OVERSAMPLING) >= side):
        exact, energies = _exact(updates, gains)
        basis = exact[:, : leading_count(energies, k, dropped)].to(updates.left.dtype)
        return Leading(basis, energies[: basis.shape[1]], seen_by(updates, basis))
    gains = gains.to(updates.left.dtype)
    if start is None or start.shape[1] < k:
        start, seen = _block(updates, gains, k, start, generator), None
    found = _iterate(updates, gains, start, seen, k, tol, max_iterations)
    keep = leading_count(found.energies, k, dropped)
    return Leading(found.basis[:, :keep], found.energies[:keep], found.seen[..., :keep])


def _exact(updates: CanonicalUpdates, gains: Tensor) -> tuple[Tensor, Tensor]:
    stack = _weighed_stack(updates, gains)
    n, c = stack.shape
    return _by_svd(stack) if min(n, c) <= EXACT_SIDE else _by_gram(stack)


def _weighed_stack(updates: CanonicalUpdates, gains: Tensor) -> Tensor:
    """[left_i @ gains_i]_i as one float64 matrix, n x (tasks m)."""
    left = updates.blocks(updates.left.mT.double()).mT
    stack: Tensor = left @ gains.double()
    return stack.permute(1, 0, 2).reshape(updates.left.shape[0], -1)


def _by_svd(stack: Tensor) -> tuple[Tensor, Tensor]:
    n, c = stack.shape
    if n > c:
        q, r = torch.linalg.qr(stack)
        u, s, _ = torch.linalg.svd(r, full_matrices=False)
        return q @ u, s.square()
    r = torch.linalg.qr(stack.mT, mode="r")[1]
    u, s, _ = torch.linalg.svd(r.mT, full_matrices=False)
    return u, s.square()


def _by_gram(stack: Tensor) -> tuple[Tensor, Tensor]:
    n, c = stack.shape
    gram = stack @ stack.mT if n <= c else stack.mT @ stack
    vectors = torch.linalg.eigh(gram)[1].flip(1)
    # Energies from the vectors: eigenvalues are noise below eps of the first one, and directions
    # that are not there would count as faint ones.
    pushed = stack.mT @ vectors if n <= c else stack @ vectors
    lengths = torch.linalg.vector_norm(pushed, dim=0)
    if n <= c:
        return vectors, lengths.square()
    # Columns of tiny energy are not accurate after the division; a QR makes them orthonormal
    # again and keeps the span of the leading ones.
    floor = torch.finfo(torch.float64).tiny
    return orthonormal(pushed / lengths.clamp_min(floor)), lengths.square()


def _block(
    updates: CanonicalUpdates,
    gains: Tensor,
    k: int,
    start: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """The start, filled up with random mixtures of the stack's columns."""
    n, c = updates.left.shape
    width = min(k + max(OVERSAMPLING, k // 2), n, c)
    have = 0 if start is None else start.shape[1]
    size = (len(gains), gains.shape[2], max(width - have, 0))
    mix = torch.randn(*size, generator=generator, dtype=torch.float32).to(gains)
    fresh = updates.left @ updates.rows(gains @ mix)
    return orthonormal(fresh if start is None else torch.cat([start.to(fresh), fresh], dim=1))


def _iterate(
    updates: CanonicalUpdates,
    gains: Tensor,
    block: Tensor,
    seen: Tensor | None,
    k: int,
    tol: float,
    max_iterations: int,
) -> Leading:
    """Subspace iteration, two products with the stack a step; directions by their energy."""
    seen = seen_by(updates, block) if seen is None else seen
    energies, vectors = _ritz(gains, seen)
    for _ in range(max_iterations):
        captured = float(energies[:k].sum())
        mixed = updates.rows(gains @ (gains.mT @ seen))
        block = orthonormal((mixed.mT @ updates.left.mT).mT)
        seen = seen_by(updates, block)
        energies, vectors = _ritz(gains, seen)
        if float(energies[:k].sum()) <= captured * (1 + tol):
            break
    turn = vectors.to(block.dtype)
    return Leading(block @ turn, energies, seen @ turn)


def _ritz(gains: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Energies within the block, descending, and the directions that have them (float64)."""
    flat = (gains.mT @ seen).reshape(-1, seen.shape[2])
    energies, vectors = torch.linalg.eigh((flat.mT @ flat).double())
    return energies.flip(0).clamp_min(0), vectors.flip(1)


def leading_count(energies: Tensor, k: int, dropped: float) -> int:
    """How many of the leading directions are kept: trailing ones are left out while their energy
    together is at most ``dropped``."""
    tails = energies.flip(0).cumsum(0).flip(0)
    return min(k, int((tails > dropped).sum()))


def orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the columns that continues their directions.

    QR flips signs; multiplying by sign(diag R) gives columns that were orthonormal back unchanged
    (without this, old tasks come out wrong after a merge).
    """
    q, r = torch.linalg.qr(columns)
    signs: Tensor = torch.where(torch.diagonal(r) < 0, -1.0, 1.0).to(q)
    continued: Tensor = q * signs
    return continued
