"""Joint subspaces of many updates: higher-order orthogonal iteration (HOOI) that knows p.

Minimises err^2 = sum_i w_i^2 |dW_i - L E_i F_i^T R^T|^2 over orthonormal bases L, R and cores of
rank p (De Lathauwer, De Moor, Vandewalle 2000, SIAM J. Matrix Anal. Appl. 21(4); docs/method.md,
"Method joint"). It differs from the textbook in three ways. A sweep looks only at the p directions
of each core that truncation will leave: ordinary sweeps, truncated afterwards, can raise the error.
There are two starts, because HOSVD alone can choose different tasks on the two sides. And for large
layers a half sweep is one step of subspace iteration and no whole decomposition.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg import truncated
from sharespace.linalg.problem import (
    BasisPair,
    UpdateProblem,
    frames_pay,
    has_few_wide_tasks,
    in_frames,
    in_span,
    own_directions,
)
from sharespace.linalg.truncated import Leading, descending_eigh, leading, leading_count
from sharespace.linalg.updates import core_svd, seen_by

RIVAL_RATIO = 4.0
"""The second start is swept while its weighed squared error is below this many times the first's.
Sweeping it always was better in 1 of 21 synthetic problems (error 0.00132 instead of 0.00134), and
the better of the two is kept unswept anyway, so the result is never worse than own SVDs."""

GRAM_ENOUGH = 1e-8
"""While at least this fraction of the energy is left out, eigenvectors of a float64 Gram matrix are
as good as singular vectors; noise of 1e-16 in it only matters where hardly anything is left out."""


@dataclass(frozen=True, eq=False)
class Iterate:
    """The pair of bases between two sweeps, with what they lose."""

    bases: BasisPair
    lost: float
    """The weighed energy that they do not capture, after truncation of the cores to rank p."""
    seen: tuple[Tensor, Tensor] | None = None
    """Y_i^T L and Z_i^T R of every task (tasks x r x k), cached because they cost a product with
    all updates. None: they are computed anew; ``BlockSteps`` leaves them out, because they grow
    with the number of tasks."""


def joint(
    problem: UpdateProblem,
    k: tuple[int, int],
    *,
    start: BasisPair | None = None,
    sweeps: int = 8,
    tol: float = 5e-4,
) -> BasisPair:
    """Bases of at most k directions with the least weighed error found.

    The better of two starts, each after one sweep: HOSVD, and the span of the tasks' own leading
    singular vectors. The second makes the result never worse than own truncated SVDs with as many
    columns in the weighed sum (p not below the ranks); HOSVD alone can choose different tasks left
    and right when they are nearly tied, and capture none.

    Args:
        problem: the updates dW_i, their weights w_i and the pseudo-rank p.
        k: (k_left, k_right), upper limits; fewer come back where the rank is lower.
        start: the HOSVD start, computed before, to save its cost.
        sweeps: at most so many after the first; each never raises the weighed error.
        tol: stop when a sweep lowers the weighed error by less than this fraction.
    """
    if has_few_wide_tasks(problem):
        span = in_span(problem)
        inside = None if start is None else span.inside(start)
        return span.whole(joint(span.problem, k, start=inside, sweeps=sweeps, tol=tol))
    total, method = problem.total, choose_steps(problem, k)
    if start is not None:
        framed, first = False, method.with_bases(start)
    else:
        framed = frames_pay(problem, k)
        first = _in_frames(problem, k) if framed else method.hosvd()
    # Not 0: what is lost is a sum of many squares, and rounding where nothing is.
    if first.lost <= max(problem.dropped, 1e-12 * total):
        return first.bases
    before, best = first, method.sweep(first)
    if not framed:  # The solution in frames has compared both starts already.
        second = method.with_bases(own_directions(problem, k))
        if second.lost < RIVAL_RATIO * best.lost:
            before, second = min(before, second, key=_lost), method.sweep(second)
        best = min(best, second, key=_lost)
    for _ in range(sweeps):
        gained = before.lost - best.lost
        # Not <, or sweeps would go on where nothing is lost and nothing can be gained.
        if gained <= tol * before.lost:
            break
        before, best = best, method.sweep(best)
    # Not simply the last: rounding can make it worse than the one before by a little.
    return min(before, best, key=_lost).bases


def hosvd(problem: UpdateProblem, k: tuple[int, int]) -> BasisPair:
    """Leading singular vectors of the two weighed unfoldings, each side alone.

    Args:
        problem: the updates dW_i and their weights w_i; p has no effect.
        k: (k_left, k_right), upper limits; fewer come back where the rank is lower.
    """
    if has_few_wide_tasks(problem):
        span = in_span(problem)
        return span.whole(hosvd(span.problem, k))
    return choose_steps(problem, k).hosvd().bases


def choose_steps(problem: UpdateProblem, k: tuple[int, int]) -> BlockSteps | StackSteps:
    """How the steps are computed: in blocks where there are many tasks and both sides are small."""
    n, c = problem.updates.left.shape
    side = max(n, problem.updates.right.shape[0])
    if side <= truncated.EXACT_SIDE and c >= side:
        return BlockSteps(problem, k)
    return StackSteps(problem, k)


def _in_frames(problem: UpdateProblem, k: tuple[int, int]) -> Iterate:
    """The solution of the problem in frames that hold most of it."""
    small = in_frames(problem, k)
    bases, seen = small.whole(joint(small.problem, k))
    return Iterate(bases, problem.lost(bases, problem.seen_energy(*seen)), seen)


def _lost(iterate: Iterate) -> float:
    return iterate.lost


@dataclass(frozen=True, eq=False)
class StackSteps:
    """The steps of ``joint``, each in a few products with all directions of all tasks."""

    problem: UpdateProblem
    k: tuple[int, int]

    def hosvd(self) -> Iterate:
        """Leading singular vectors of the two weighed unfoldings, each side alone."""
        left, right = self.problem, self.problem.flipped
        return self._iterate_of(_unfolding(left, self.k[0]), _unfolding(right, self.k[1]))

    def with_bases(self, bases: BasisPair) -> Iterate:
        """Bases that are known already, with what they lose."""
        return self._seeing(bases, self._seen(bases))

    def sweep(self, iterate: Iterate) -> Iterate:
        """One HOOI sweep: the left basis for the right one, then the right for the new left."""
        bases, problem = iterate.bases, self.problem
        seen_left, seen_right = iterate.seen or self._seen(bases)
        left = _half(problem, bases.left, seen_left, seen_right, self.k[0])
        right = _half(problem.flipped, bases.right, seen_right, left.seen, self.k[1])
        return self._iterate_of(left, right)

    def _seen(self, bases: BasisPair) -> tuple[Tensor, Tensor]:
        updates = self.problem.updates
        return seen_by(updates, bases.left), seen_by(updates.flipped, bases.right)

    def _iterate_of(self, left: Leading, right: Leading) -> Iterate:
        return self._seeing(BasisPair(left.basis, right.basis), (left.seen, right.seen))

    def _seeing(self, bases: BasisPair, seen: tuple[Tensor, Tensor]) -> Iterate:
        lost = self.problem.lost(bases, self.problem.seen_energy(*seen))
        return Iterate(bases, lost, seen)


def _unfolding(problem: UpdateProblem, k: int) -> Leading:
    """Leading left singular vectors of [w_1 Y_1 S_1, ..., w_T Y_T S_T]."""
    gains = torch.diag_embed(problem.sigma * problem.weights.to(problem.sigma)[:, None])
    generator = torch.Generator().manual_seed(problem.seed)
    # A hundredth is near enough: the sweeps go on from here.
    return leading(
        problem.updates, gains, k, dropped=problem.dropped, tol=1e-2, generator=generator
    )


def _half(problem: UpdateProblem, basis: Tensor, seen: Tensor, opposite: Tensor, k: int) -> Leading:
    """The best left basis for the current right one and the cores' right singular vectors.

    One step of subspace iteration from the current left basis: it never lowers what is captured,
    so a half sweep never raises the weighed error. More steps before the other side follows cost
    as much as more sweeps and gain less.

    Args:
        problem: the problem, flipped for the other half of a sweep.
        basis: the current left basis, L.
        seen: what it sees of each task, Y_i^T L.
        opposite: what the right basis sees of each task, Z_i^T R.
        k: k_left.
    """
    return leading(
        problem.updates,
        _gains(problem, seen, opposite),
        k,
        dropped=problem.dropped,
        start=(basis, seen),
        max_iterations=1,
        generator=torch.Generator().manual_seed(problem.seed),
    )


def _gains(problem: UpdateProblem, seen: Tensor, opposite: Tensor) -> Tensor:
    """w_i S_i Z_i^T R_i, tasks x r x m: dW_i R_i in the task's own left directions.

    R_i = R V_i(:p) with V_i the right singular vectors of the core; for p >= rank they span what R
    sees of the task, and V_i can be left out.
    """
    scaled = opposite * (problem.sigma * problem.weights.to(problem.sigma)[:, None])[..., None]
    rank = min(opposite.shape[1:])
    if problem.p is not None and problem.p < rank:
        svd = core_svd(seen, problem.sigma, opposite)
        return scaled @ svd.right[..., : problem.p].to(scaled.dtype)
    if opposite.shape[2] <= opposite.shape[1]:
        return scaled
    # More columns than a task has directions: its triangle has the same left singular vectors.
    r: Tensor = torch.linalg.qr(scaled.mT, mode="r")[1]
    return r.mT


@dataclass(frozen=True, eq=False)
class BlockSteps:
    """The same steps for many tasks and small sides, whose memory does not grow with the tasks.

    So are the cores of a layer that is built out of core. A side's Gram matrix,
    sum_i w_i^2 dW_i R_i R_i^T dW_i^T, is small then: each step adds it up block by block in float64
    and takes its eigenvectors, so that every step finds the maximiser.
    """

    problem: UpdateProblem
    k: tuple[int, int]

    def hosvd(self) -> Iterate:
        """Leading singular vectors of the two weighed unfoldings, each side alone."""
        left = _leading(self.problem, self.k[0], None)[0]
        right = _leading(self.problem.flipped, self.k[1], None)[0]
        return self.with_bases(BasisPair(left, right))

    def with_bases(self, bases: BasisPair) -> Iterate:
        """Bases that are known already, with what they lose."""
        return Iterate(bases, self.problem.lost(bases))

    def sweep(self, iterate: Iterate) -> Iterate:
        """One HOOI sweep: the left basis for the right one, then the right for the new left."""
        left, _ = _leading(self.problem, self.k[0], iterate.bases)
        half_swept = BasisPair(iterate.bases.right, left)
        right, energy = _leading(self.problem.flipped, self.k[1], half_swept)
        bases = BasisPair(left, right)
        # Without truncation the energy along the new right basis is what both bases capture.
        known = None if _truncates(self.problem, bases) else energy
        return Iterate(bases, self.problem.lost(bases, known))


def _leading(problem: UpdateProblem, k: int, bases: BasisPair | None) -> tuple[Tensor, float]:
    """The best left basis for a right one, and the energy along it; without bases, for the whole
    updates."""
    gram = problem.weights.new_zeros((problem.updates.left.shape[0],) * 2)
    for rows, mix in _blocks(problem, bases):
        inner = mix @ mix.mT
        gram.addmm_(rows.flatten(0, 1).mT, (inner @ rows).flatten(0, 1))
    energies, vectors = descending_eigh((gram + gram.mT) / 2)
    if float(energies[k:].sum()) <= GRAM_ENOUGH * float(energies.sum()):
        energies, vectors = _by_triangle(problem, bases)
    keep = leading_count(energies, k, problem.dropped)
    return vectors[:, :keep].to(problem.updates.left.dtype), float(energies[:keep].sum())


def _by_triangle(problem: UpdateProblem, bases: BasisPair | None) -> tuple[Tensor, Tensor]:
    """The same directions from the stack itself, folded into one triangle block by block."""
    n = problem.updates.left.shape[0]
    triangle = problem.weights.new_zeros(0, n)
    for rows, mix in _blocks(problem, bases):
        if mix.shape[2] > mix.shape[1]:
            mix = torch.linalg.qr(mix.mT, mode="r")[1].mT
        stack = (mix.mT @ rows).flatten(0, 1)
        triangle = torch.linalg.qr(torch.cat([triangle, stack]), mode="r")[1]
    _, values, vectors = torch.linalg.svd(triangle, full_matrices=False)
    return values.square(), vectors.mT


def _blocks(problem: UpdateProblem, bases: BasisPair | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each block of tasks: the left directions as rows (tasks x r x n), and w_i S_i Z_i^T R_i
    (tasks x r x m), float64; see ``_gains``."""
    truncates = bases is not None and _truncates(problem, bases)
    for tasks, part in problem.updates.slices():
        left, right = (part.blocks(rows.mT.double()) for rows in (part.left, part.right))
        sigma = part.blocks(part.sigma).double()
        seen = right if bases is None else right @ bases.right.double()
        mix = seen * (sigma * problem.weights[tasks, None])[..., None]
        if truncates and bases is not None:
            svd = core_svd(left @ bases.left.double(), sigma, seen)
            mix = mix @ svd.right[..., : problem.p]
        yield left, mix


def _truncates(problem: UpdateProblem, bases: BasisPair) -> bool:
    """Whether the pseudo-rank takes something away from the cores."""
    return problem.p is not None and problem.p < min(
        *bases.k, max(problem.updates.ranks, default=0)
    )
