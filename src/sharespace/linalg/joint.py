"""Joint subspaces of many updates: HOSVD start, p-aware HOOI sweeps, two starts.

Minimises sum_i w_i^2 |dW_i - left E_i F_i^T right^T|^2 over orthonormal bases and cores of rank p
(De Lathauwer et al. 2000, SIAM J. Matrix Anal. Appl. 21(4); method.md, "Methods").
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharespace.linalg.canonical import Updates
from sharespace.linalg.cores import captured, core_svd, seen_by
from sharespace.linalg.precision import tolerance
from sharespace.linalg.truncated import Leading, leading, orthonormal


@dataclass(frozen=True, eq=False)
class Bases:
    """A left and a right basis, orthonormal columns."""

    left: Tensor
    """n x k_left."""
    right: Tensor
    """d x k_right."""

    @property
    def k(self) -> tuple[int, int]:
        return self.left.shape[1], self.right.shape[1]

    def first(self, k: tuple[int, int]) -> Bases:
        """The leading k_left and k_right directions."""
        return Bases(self.left[:, : k[0]], self.right[:, : k[1]])


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be approximated."""

    updates: Updates
    weights: Tensor
    """float64 [tasks]; energies below are sums of (weight * norm)^2."""
    p: int | None = None
    """Pseudo-rank; None: no limit beyond each task's rank."""
    seed: int = 0
    """Of the randomised range finder."""

    @property
    def sigma(self) -> Tensor:
        """tasks x r."""
        return self.updates.blocks(self.updates.sigma)

    @property
    def dropped(self) -> float:
        """Energy that may be left out as rounding."""
        return tolerance(self.updates.left.dtype) ** 2

    @property
    def total(self) -> float:
        """Weighed energy of all tasks."""
        return float((self.weights * self.updates.norms).square().sum())

    @property
    def flipped(self) -> Problem:
        """The same for the transposed weight."""
        return replace(self, updates=self.updates.flipped)

    def energy(self, bases: Bases) -> float:
        """Weighed energy that the bases capture, after truncation of the cores to rank p."""
        left, right = seen_by(self.updates, bases.left), seen_by(self.updates.flipped, bases.right)
        energies = captured(left, self.sigma, right, self.p)
        return float((self.weights.square() * energies).sum())


def hosvd(problem: Problem, k: tuple[int, int]) -> Bases:
    """Leading singular vectors of the two weighed unfoldings, each side alone."""
    return Bases(_unfolding(problem, k[0]).basis, _unfolding(problem.flipped, k[1]).basis)


def unfolding_energies(problem: Problem, k: int) -> Tensor:
    """float64 [k']: energies along the leading directions of the left weighed unfolding."""
    return _unfolding(problem, k).energies


def joint(
    problem: Problem,
    k: tuple[int, int],
    *,
    start: Bases | None = None,
    sweeps: int = 8,
    tol: float = 1e-3,
) -> Bases:
    """Bases of at most k directions with the least weighed error found.

    The better of two starts, each after one sweep: HOSVD, and the span of the tasks' own leading
    singular vectors. The second makes the result never worse than own truncated SVDs with as many
    columns in the weighed sum (p not below the ranks); HOSVD alone can choose different tasks left
    and right when they are nearly tied, and capture none.

    Args:
        problem: the updates and their weights.
        k: (k_left, k_right), upper limits; fewer come back where the rank is lower.
        start: a HOSVD computed before, to save its cost.
        sweeps: at most so many after the first; each never raises the weighed error.
        tol: stop when a sweep lowers the weighed error by less than this fraction.
    """
    total = problem.total
    best = start or hosvd(problem, k)
    if total - problem.energy(best) <= max(problem.dropped, 1e-12 * total):
        return best
    best = _sweep(problem, best, k)
    energy = problem.energy(best)
    other = _sweep(problem, _own_directions(problem, k), k)
    if (rival := problem.energy(other)) > energy:
        best, energy = other, rival
    for _ in range(sweeps):
        swept = _sweep(problem, best, k)
        now = problem.energy(swept)
        if now <= energy:
            break
        gained, lost = now - energy, total - energy
        best, energy = swept, now
        if gained <= tol * lost:
            break
    return best


def _unfolding(problem: Problem, k: int) -> Leading:
    gains = torch.diag_embed(problem.sigma * problem.weights.to(problem.sigma)[:, None])
    generator = torch.Generator().manual_seed(problem.seed)
    found = leading(
        problem.updates, gains, k, dropped=problem.dropped, tol=1e-2, generator=generator
    )
    return replace(found, basis=found.basis.to(problem.updates.left.dtype))


def _own_directions(problem: Problem, k: tuple[int, int]) -> Bases:
    """Span of the singular vectors that own SVDs would keep with k columns in all."""
    strength = problem.sigma * problem.weights.to(problem.sigma)[:, None]
    order = problem.updates.rows(strength).argsort(descending=True)
    left, right = order[: k[0]], order[: k[1]]
    return Bases(
        orthonormal(problem.updates.left[:, left]), orthonormal(problem.updates.right[:, right])
    )


def _sweep(problem: Problem, bases: Bases, k: tuple[int, int]) -> Bases:
    """One HOOI sweep: the left basis for the right one, then the right for the new left one."""
    left = _half(problem, bases, k[0])
    flipped = _half(problem.flipped, Bases(bases.right, left), k[1])
    return Bases(left, flipped)


def _half(problem: Problem, bases: Bases, k: int) -> Tensor:
    """The best left basis for the current right one and the cores' right singular vectors.

    The start is the current left basis, and a step of subspace iteration never lowers what it
    captures, so a half sweep never raises the weighed error even when it stops early.
    """
    found = leading(
        problem.updates,
        _gains(problem, bases),
        k,
        dropped=problem.dropped,
        start=bases.left,
        max_iterations=2,
        generator=torch.Generator().manual_seed(problem.seed),
    )
    return found.basis.to(problem.updates.left.dtype)


def _gains(problem: Problem, bases: Bases) -> Tensor:
    """w_i diag(s_i) Z_i^T R_i, tasks x r x m: dW_i R_i in the task's own left directions.

    R_i = right V_i(:p) with V_i the right singular vectors of the core; for p >= rank they span
    what ``right`` sees of the task, and V_i can be left out.
    """
    seen = seen_by(problem.updates.flipped, bases.right)
    scaled = seen * (problem.sigma * problem.weights.to(problem.sigma)[:, None])[..., None]
    rank = min(seen.shape[1:])
    if problem.p is not None and problem.p < rank:
        svd = core_svd(seen_by(problem.updates, bases.left), problem.sigma, seen)
        return scaled @ svd.right[..., : problem.p].to(scaled.dtype)
    if seen.shape[2] <= seen.shape[1]:
        return scaled
    r: Tensor = torch.linalg.qr(scaled.mT, mode="r")[1]
    return r.mT
