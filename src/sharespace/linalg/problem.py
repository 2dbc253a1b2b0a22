"""What ``joint`` solves: updates with weights, and the bases that it finds.

The steps of ``joint`` on whole stacks of directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharespace.linalg.precision import tolerance
from sharespace.linalg.truncated import Leading, leading, orthonormal
from sharespace.linalg.updates import CanonicalUpdates, captured, core_svd, seen_by


@dataclass(frozen=True, eq=False)
class BasisPair:
    """A left and a right basis, orthonormal columns."""

    left: Tensor
    """n x k_left."""
    right: Tensor
    """d x k_right."""

    @property
    def k(self) -> tuple[int, int]:
        return self.left.shape[1], self.right.shape[1]

    @property
    def flipped(self) -> BasisPair:
        """Of the transposed weight."""
        return BasisPair(self.right, self.left)

    def first(self, k: tuple[int, int]) -> BasisPair:
        """The leading k_left and k_right directions."""
        return BasisPair(self.left[:, : k[0]], self.right[:, : k[1]])


@dataclass(frozen=True, eq=False)
class UpdateProblem:
    """What is to be approximated."""

    updates: CanonicalUpdates
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
    def flipped(self) -> UpdateProblem:
        """The same for the transposed weight."""
        return replace(self, updates=self.updates.flipped)

    def select(self, tasks: Sequence[int]) -> UpdateProblem:
        """Some of the tasks, in that order, with the weights they have here."""
        chosen = list(tasks)
        return replace(self, updates=self.updates.select(chosen), weights=self.weights[chosen])

    def energy(self, bases: BasisPair) -> float:
        """Weighed energy that the bases capture, after truncation of the cores to rank p."""
        energies = self.weights.new_zeros(())
        for tasks, part in self.updates.slices():
            left, right = seen_by(part, bases.left), seen_by(part.flipped, bases.right)
            found = captured(left, part.blocks(part.sigma), right, self.p)
            energies += (self.weights[tasks].square() * found).sum()
        return float(energies)

    def seen_energy(self, left: Tensor, right: Tensor) -> float:
        """``energy`` of bases from what they see of each task (tasks x r x k)."""
        energies = captured(left, self.sigma, right, self.p)
        return float((self.weights.square() * energies).sum())


@dataclass(frozen=True, eq=False)
class Iterate:
    """Bases and the weighed energy that they capture."""

    bases: BasisPair
    energy: float


@dataclass(frozen=True, eq=False)
class Seen(Iterate):
    """And what they see of each task."""

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, problem: UpdateProblem, left: Leading, right: Leading) -> Seen:
        energy = problem.seen_energy(left.seen, right.seen)
        return cls(BasisPair(left.basis, right.basis), energy, left.seen, right.seen)


@dataclass(frozen=True, eq=False)
class StackSteps:
    """Each step in a few products with all directions of all tasks."""

    problem: UpdateProblem
    k: tuple[int, int]

    def hosvd(self) -> Seen:
        """Leading singular vectors of the two weighed unfoldings, each side alone."""
        left, right = self.problem, self.problem.flipped
        return Seen.of(left, _unfolding(left, self.k[0]), _unfolding(right, self.k[1]))

    def given(self, bases: BasisPair) -> Seen:
        """Bases that are known already."""
        left = seen_by(self.problem.updates, bases.left)
        right = seen_by(self.problem.updates.flipped, bases.right)
        return Seen(bases, self.problem.seen_energy(left, right), left, right)

    def own(self) -> Seen:
        """Span of the singular vectors that own SVDs would keep with k columns in all."""
        return self.given(own_directions(self.problem, self.k))

    def sweep(self, found: Iterate) -> Seen:
        """One HOOI sweep: the left basis for the right one, then the right for the new left."""
        now = found if isinstance(found, Seen) else self.given(found.bases)
        problem = self.problem
        left = _half(problem, now.bases.left, now.left, now.right, self.k[0])
        right = _half(problem.flipped, now.bases.right, now.right, left.seen, self.k[1])
        return Seen.of(problem, left, right)


def strengths(updates: CanonicalUpdates, weights: Tensor) -> Tensor:
    """c: w_i times the singular values."""
    sigma = updates.blocks(updates.sigma)
    return updates.rows(sigma * weights.to(sigma)[:, None])


def own_directions(problem: UpdateProblem, k: tuple[int, int]) -> BasisPair:
    """Span of the singular vectors that own SVDs would keep with k columns in all."""
    order = strengths(problem.updates, problem.weights).argsort(descending=True)
    left, right = order[: k[0]], order[: k[1]]
    return BasisPair(
        orthonormal(problem.updates.left[:, left]), orthonormal(problem.updates.right[:, right])
    )


def _unfolding(problem: UpdateProblem, k: int) -> Leading:
    gains = torch.diag_embed(problem.sigma * problem.weights.to(problem.sigma)[:, None])
    generator = torch.Generator().manual_seed(problem.seed)
    return leading(
        problem.updates, gains, k, dropped=problem.dropped, tol=1e-2, generator=generator
    )


def _half(problem: UpdateProblem, basis: Tensor, seen: Tensor, other: Tensor, k: int) -> Leading:
    """The best left basis for the current right one and the cores' right singular vectors.

    One step of subspace iteration from the current left basis: it never lowers what is captured,
    so a half sweep never raises the weighed error. More steps before the other side follows cost
    as much as more sweeps and gain less.

    Args:
        basis: the current left basis.
        seen: what it sees of each task.
        other: what the right basis sees of each task.
    """
    return leading(
        problem.updates,
        _gains(problem, seen, other),
        k,
        dropped=problem.dropped,
        start=basis,
        seen=seen,
        max_iterations=1,
        generator=torch.Generator().manual_seed(problem.seed),
    )


def _gains(problem: UpdateProblem, seen: Tensor, other: Tensor) -> Tensor:
    """w_i diag(s_i) Z_i^T R_i, tasks x r x m: dW_i R_i in the task's own left directions.

    R_i = right V_i(:p) with V_i the right singular vectors of the core; for p >= rank they span
    what ``right`` sees of the task, and V_i can be left out.
    """
    scaled = other * (problem.sigma * problem.weights.to(problem.sigma)[:, None])[..., None]
    rank = min(other.shape[1:])
    if problem.p is not None and problem.p < rank:
        svd = core_svd(seen, problem.sigma, other)
        return scaled @ svd.right[..., : problem.p].to(scaled.dtype)
    if other.shape[2] <= other.shape[1]:
        return scaled
    r: Tensor = torch.linalg.qr(scaled.mT, mode="r")[1]
    return r.mT
