"""The steps of ``joint`` for many tasks and small sides, in blocks of tasks.

So are the cores of a layer that is built out of core. A side's Gram matrix, sum_i w_i^2 dW_i R_i
R_i^T dW_i^T, is small then: each step adds it up block by block in float64 and takes its
eigenvectors. No step needs memory that grows with the number of tasks.

A start of ``joint`` for many tasks and wide sides: frames from a sample and one look at all.

As out of core (``range_search``): a side's leading directions in a random sample of the tasks,
after one step of subspace iteration on all of them, are a frame a little wider than k. The tasks in
both frames are a small problem; its solution takes the place of the HOSVD, at half of the cost.

Few tasks with wide sides: the same problem in coordinates of the span of their directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharespace.linalg import truncated
from sharespace.linalg.out_of_core.passes import SAMPLE, normal, orthonormal_columns, ritz, width
from sharespace.linalg.problem import (
    BasisPair,
    Iterate,
    Seen,
    UpdateProblem,
    own_directions,
    strengths,
)
from sharespace.linalg.updates import CanonicalUpdates, core_svd

EXACT = 1e-8
"""While so much of the energy, or more, is left out, eigenvectors of a float64 Gram matrix are as
good as singular vectors; noise of 1e-16 in it only matters where hardly anything is left out."""

MANY = 3
"""Samples that the tasks have to be, to make one worth its cost."""


def many_small(problem: UpdateProblem) -> bool:
    """Whether the steps in blocks are the right ones."""
    n, c = problem.updates.left.shape
    side = max(n, problem.updates.right.shape[0])
    return side <= truncated.EXACT_SIDE and c >= side


@dataclass(frozen=True, eq=False)
class BlockSteps:
    """As ``StackSteps``; the directions come from exact decompositions in every step."""

    problem: UpdateProblem
    k: tuple[int, int]

    def hosvd(self) -> Iterate:
        """Leading singular vectors of the two weighed unfoldings, each side alone."""
        left = _leading(self.problem, self.k[0], None)[0]
        right = _leading(self.problem.flipped, self.k[1], None)[0]
        return self.given(BasisPair(left, right))

    def given(self, bases: BasisPair) -> Iterate:
        """Bases that are known already."""
        return Iterate(bases, self.problem.energy(bases))

    def own(self) -> Iterate:
        """Span of the singular vectors that own SVDs would keep with k columns in all."""
        return self.given(own_directions(self.problem, self.k))

    def sweep(self, found: Iterate) -> Iterate:
        """One HOOI sweep: the left basis for the right one, then the right for the new left."""
        left, _ = _leading(self.problem, self.k[0], found.bases)
        now = BasisPair(found.bases.right, left)
        right, energy = _leading(self.problem.flipped, self.k[1], now)
        bases = BasisPair(left, right)
        return self.given(bases) if _cut(self.problem, bases) else Iterate(bases, energy)


def _leading(problem: UpdateProblem, k: int, bases: BasisPair | None) -> tuple[Tensor, float]:
    """The best left basis for a right one, and the energy along it; without bases, of all that
    the tasks are."""
    gram = problem.weights.new_zeros((problem.updates.left.shape[0],) * 2)
    for rows, mix in _parts(problem, bases):
        inner = mix @ mix.mT
        gram.addmm_(rows.flatten(0, 1).mT, (inner @ rows).flatten(0, 1))
    energies, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    energies, vectors = energies.flip(0).clamp_min(0), vectors.flip(1)
    if float(energies[k:].sum()) <= EXACT * float(energies.sum()):
        energies, vectors = _by_triangle(problem, bases)
    keep = truncated.leading_count(energies, k, problem.dropped)
    return vectors[:, :keep].to(problem.updates.left.dtype), float(energies[:keep].sum())


def _by_triangle(problem: UpdateProblem, bases: BasisPair | None) -> tuple[Tensor, Tensor]:
    """The same directions from the stack itself, folded into one triangle block by block."""
    n = problem.updates.left.shape[0]
    triangle = problem.weights.new_zeros(0, n)
    for rows, mix in _parts(problem, bases):
        if mix.shape[2] > mix.shape[1]:
            mix = torch.linalg.qr(mix.mT, mode="r")[1].mT
        stack = (mix.mT @ rows).flatten(0, 1)
        triangle = torch.linalg.qr(torch.cat([triangle, stack]), mode="r")[1]
    _, values, vectors = torch.linalg.svd(triangle, full_matrices=False)
    return values.square(), vectors.mT


def _parts(problem: UpdateProblem, bases: BasisPair | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each block: the left directions as rows (tasks x r x n), and w_i diag(s_i) Z_i^T R_i
    (tasks x r x m), float64; see ``joint_whole._gains``."""
    cut = bases is not None and _cut(problem, bases)
    for tasks, part in problem.updates.slices():
        left, right = (part.blocks(rows.mT.double()) for rows in (part.left, part.right))
        sigma = part.blocks(part.sigma).double()
        seen = right if bases is None else right @ bases.right.double()
        mix = seen * (sigma * problem.weights[tasks, None])[..., None]
        if cut and bases is not None:
            svd = core_svd(left @ bases.left.double(), sigma, seen)
            mix = mix @ svd.right[..., : problem.p]
        yield left, mix


def _cut(problem: UpdateProblem, bases: BasisPair) -> bool:
    """Whether the pseudo-rank takes something away."""
    return problem.p is not None and problem.p < min(
        *bases.k, max(problem.updates.ranks, default=0)
    )


@dataclass(frozen=True, eq=False)
class InFrames:
    """All tasks in coordinates of two frames."""

    left: Tensor
    """n x l, orthonormal columns."""
    right: Tensor
    """d x l'."""
    problem: UpdateProblem
    """In the frames' coordinates; the directions of a task are not orthonormal there, and what is
    outside of the frames is lost whatever the bases."""

    def whole(self, problem: UpdateProblem, small: BasisPair) -> Seen:
        """Bases in the frames as bases of the whole problem, and what they see."""
        core = self.problem.updates
        left, right = core.left.mT @ small.left, core.right.mT @ small.right
        seen = core.blocks(left), core.blocks(right)
        bases = BasisPair(self.left @ small.left, self.right @ small.right)
        return Seen(bases, problem.seen_energy(*seen), *seen)


def many_wide(problem: UpdateProblem, k: tuple[int, int]) -> bool:
    """Whether the tasks are many and their sides wide enough."""
    sides = problem.updates.left.shape[0], problem.updates.right.shape[0]
    columns = problem.updates.left.shape[1]
    wide = min(sides) > max(truncated.EXACT_SIDE, 4 * width(max(k), max(sides), columns))
    return wide and min(k) > 0 and columns >= MANY * SAMPLE * width(max(k), max(sides), columns)


def in_frames(problem: UpdateProblem, k: tuple[int, int]) -> InFrames:
    """The tasks in frames that hold most of their weighed energy.

    Where single tasks' own directions might be the better bases, they are in the frames, too.
    """
    generator = torch.Generator().manual_seed(problem.seed)
    sample = _sample(problem, k, generator)
    left, left_held = _looked(problem, sample, k[0], generator)
    right, right_held = _looked(problem.flipped, sample.flipped, k[1], generator)
    most = (
        strengths(problem.updates, problem.weights).sort(descending=True).values[: min(k)].double()
    )
    if left_held + right_held - problem.total < float(most.square().sum()):
        own = own_directions(problem, k)
        left, right = torch.cat([left, own.left], dim=1), torch.cat([right, own.right], dim=1)
    left, right = orthonormal_columns(left), orthonormal_columns(right)
    core = CanonicalUpdates(
        _rows(problem.updates.left, left).mT,
        problem.updates.sigma,
        _rows(problem.updates.right, right).mT,
        problem.updates.ranks,
    )
    return InFrames(left, right, replace(problem, updates=core))


def _sample(
    problem: UpdateProblem, k: tuple[int, int], generator: torch.Generator
) -> UpdateProblem:
    """The problem of a few tasks drawn at random."""
    drawn, columns, tasks = torch.randperm(len(problem.weights), generator=generator), 0, 0
    updates = problem.updates
    wanted = SAMPLE * width(max(k), max(updates.left.shape[0], updates.right.shape[0]), 1 << 30)
    while columns < wanted:
        columns += updates.ranks[int(drawn[tasks])]
        tasks += 1
    return problem.select(sorted(drawn[:tasks].tolist()))


def _looked(
    problem: UpdateProblem, sample: UpdateProblem, k: int, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Directions of the left side, columns of length 1, and a lower bound of the energy that the
    best k of them hold."""
    found = truncated.leading(
        sample.updates,
        torch.diag_embed(sample.sigma * sample.weights.to(sample.sigma)[:, None]),
        k,
        dropped=0.0,
        tol=1e-1,
        generator=generator,
    ).basis
    n, c = problem.updates.left.shape
    fresh = torch.randn(n, width(k, n, c) - found.shape[1], generator=generator).to(found)
    test = orthonormal_columns(torch.cat([found, fresh], dim=1))
    pushed = torch.zeros_like(test.mT)
    for tasks, part in problem.updates.slices():
        gains = strengths(part, problem.weights[tasks]).square()
        rows = part.left.mT
        pushed.addmm_(((rows @ test) * gains[:, None]).mT, rows)
    held = ritz(test, pushed.mT)[0]
    return normal(pushed.mT), float(held[:k].sum())


def _rows(directions: Tensor, frame: Tensor) -> Tensor:
    """directions^T frame, c x l; the wide side last, as in ``cores.seen_by``."""
    return (frame.mT @ directions).mT.contiguous()


@dataclass(frozen=True, eq=False)
class InSpan:
    """A problem whose sides are no wider than its tasks have directions."""

    left: Tensor
    """float64, n x c: an orthonormal basis of all left directions."""
    right: Tensor
    """float64, d x c."""
    problem: UpdateProblem
    """The same in their coordinates; nothing is outside."""

    def inside(self, bases: BasisPair | None) -> BasisPair | None:
        """Bases of the whole problem that lie in the span, in its coordinates."""
        if bases is None:
            return None
        left, right = self.left.mT @ bases.left.double(), self.right.mT @ bases.right.double()
        return BasisPair(left.to(bases.left), right.to(bases.right))

    def whole(self, bases: BasisPair) -> BasisPair:
        """And back."""
        # The wide side last, where QR has it contiguous: several times as fast.
        left, right = (
            (basis.double().mT @ span.mT).mT.to(basis)
            for basis, span in ((bases.left, self.left), (bases.right, self.right))
        )
        return BasisPair(left, right)


def few_wide(problem: UpdateProblem) -> bool:
    """Whether the tasks have fewer directions than both sides, and few enough for decompositions
    of them all: one of the wide sides then serves every step."""
    n, c = problem.updates.left.shape
    return 0 < c <= truncated.EXACT_SIDE and c < min(n, problem.updates.right.shape[0])


def in_span(problem: UpdateProblem) -> InSpan:
    """By one QR a side, in float64."""
    updates = problem.updates
    left, left_core = torch.linalg.qr(updates.left.double())
    right, right_core = torch.linalg.qr(updates.right.double())
    core = CanonicalUpdates(
        left_core.to(updates.left), updates.sigma, right_core.to(updates.right), updates.ranks
    )
    return InSpan(left, right, replace(problem, updates=core))
