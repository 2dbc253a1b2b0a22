"""What ``joint`` solves: updates with weights, and the same problem in fewer coordinates.

Two forms of the problem are solved in smaller coordinates (docs/method.md, "What it costs"). Few
tasks with wide sides lie in the span of their own directions, which loses nothing. Many tasks with
wide sides are looked at in two frames a little wider than k, as out of core: the leading directions
of a random sample of the tasks, after one step of subspace iteration on all of them. The solution
in these frames takes the place of the HOSVD start, at half of the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharespace.linalg import truncated
from sharespace.linalg.frames import FactoredFrame, energies_outside
from sharespace.linalg.precision import tolerance
from sharespace.linalg.truncated import (
    orthonormal,
    orthonormal_float64,
    rayleigh_ritz,
    sketch_width,
    unit_columns,
)
from sharespace.linalg.updates import CanonicalUpdates, captured, core_svd, seen_by

FAINT = 1e-4
"""Up to this fraction of the total, what is lost is measured and no difference of energies: in
float32 that has noise of 1e-7 of the total. A basis that lost 4e-7 was once taken for the better
one, and with a variance of 1 an adapter lost 6.6e-4 of its norm."""

SAMPLE_COLUMNS = 8
"""Columns of the sample's factors for each column of a frame: with more of them the start is
hardly better."""
LEAST_SAMPLES = 3
"""A sample pays only where the tasks have at least this many times its columns."""


@dataclass(frozen=True, eq=False)
class BasisPair:
    """A left and a right basis, L and R, with orthonormal columns."""

    left: Tensor
    """L, the left basis: n x k_left."""
    right: Tensor
    """R, the right basis: d x k_right."""

    @property
    def k(self) -> tuple[int, int]:
        """(k_left, k_right)."""
        return self.left.shape[1], self.right.shape[1]

    @property
    def flipped(self) -> BasisPair:
        """The bases of the transposed weight."""
        return BasisPair(self.right, self.left)

    def first(self, k: tuple[int, int]) -> BasisPair:
        """The leading k_left and k_right directions."""
        return BasisPair(self.left[:, : k[0]], self.right[:, : k[1]])


@dataclass(frozen=True, eq=False)
class UpdateProblem:
    """The updates of one layer that are to be approximated, and what each of them counts.

    The bases that are looked for have the least err^2 of docs/method.md, "Method joint".
    """

    updates: CanonicalUpdates
    """dW_i = Y_i S_i Z_i^T."""
    weights: Tensor
    """float64 [tasks], w_i; energies below are sums of (w_i * norm)^2."""
    p: int | None = None
    """Pseudo-rank of the cores; None: no limit beyond each task's rank."""
    seed: int = 0
    """Seed of the random test matrices and samples."""

    @property
    def sigma(self) -> Tensor:
        """tasks x r, the diagonals of S_i."""
        return self.updates.blocks(self.updates.sigma)

    @property
    def dropped(self) -> float:
        """Energy that may be left out as rounding, of a task of weighed norm 1."""
        return tolerance(self.updates.left.dtype) ** 2

    @property
    def total(self) -> float:
        """Weighed energy of all tasks."""
        return float((self.weights * self.updates.norms).square().sum())

    @property
    def flipped(self) -> UpdateProblem:
        """The same problem for the transposed weight."""
        return replace(self, updates=self.updates.flipped)

    def select(self, tasks: Sequence[int]) -> UpdateProblem:
        """Some of the tasks, in that order, with the weights that they have."""
        wanted = list(tasks)
        return replace(self, updates=self.updates.select(wanted), weights=self.weights[wanted])

    def energy(self, bases: BasisPair) -> float:
        """Weighed energy that the bases capture, after truncation of the cores to rank p."""
        energies = self.weights.new_zeros(())
        # In slices: what the bases see of all tasks at once would be tasks x r x k numbers.
        for tasks, part in self.updates.slices():
            left, right = seen_by(part, bases.left), seen_by(part.flipped, bases.right)
            core_energies = captured(left, part.blocks(part.sigma), right, self.p)
            energies += (self.weights[tasks].square() * core_energies).sum()
        return float(energies)

    def lost(self, bases: BasisPair, energy: float | None = None) -> float:
        """Weighed energy that the bases do not capture, after truncation to rank p.

        Args:
            bases: with orthonormal columns.
            energy: what they capture, where it is known.
        """
        difference = self.total - (self.energy(bases) if energy is None else energy)
        return difference if difference > FAINT * self.total else self._residual(bases)

    def _residual(self, bases: BasisPair) -> float:
        """``lost``, from what of the updates is outside of the bases: exact to eps of the norms."""
        dtype = self.updates.left.dtype
        frames = FactoredFrame.of(bases.left, dtype), FactoredFrame.of(bases.right, dtype)
        residual = self.weights.new_zeros(())
        for tasks, part in self.updates.slices():
            splits = frames[0].split(part), frames[1].split(part.flipped)
            energies = energies_outside(part, splits)
            if self.p is not None:
                sigma, (left, right) = part.blocks(part.sigma), splits
                energies = energies + core_svd(left.inside, sigma, right.inside).tail(self.p)
            residual += (self.weights[tasks].square() * energies).sum()
        return float(residual)

    def seen_energy(self, left: Tensor, right: Tensor) -> float:
        """``energy`` of bases from what they see of each task, Y_i^T L and Z_i^T R (tasks x r x
        k)."""
        energies = captured(left, self.sigma, right, self.p)
        return float((self.weights.square() * energies).sum())


def strengths(updates: CanonicalUpdates, weights: Tensor) -> Tensor:
    """[c]: w_i sigma_j of every singular direction of every task."""
    sigma = updates.blocks(updates.sigma)
    return updates.rows(sigma * weights.to(sigma)[:, None])


def own_directions(problem: UpdateProblem, k: tuple[int, int]) -> BasisPair:
    """Span of the singular vectors that own SVDs would keep with k columns in all: the second
    start of docs/method.md, "Method joint"."""
    # Of all tasks in one order: the best that own SVDs with k columns in all can keep.
    order = strengths(problem.updates, problem.weights).argsort(descending=True)
    left, right = order[: k[0]], order[: k[1]]
    return BasisPair(
        orthonormal(problem.updates.left[:, left]), orthonormal(problem.updates.right[:, right])
    )


@dataclass(frozen=True, eq=False)
class SpanProblem:
    """A problem in coordinates of the span of its tasks, whose sides are no wider than the tasks
    have directions."""

    left: Tensor
    """float64, n x c: an orthonormal basis of all left directions."""
    right: Tensor
    """float64, d x c: the same on the right."""
    problem: UpdateProblem
    """The same problem in the coordinates of the two; nothing of a task is outside of them."""

    def inside(self, bases: BasisPair) -> BasisPair:
        """Bases of the whole problem that lie in the span, in its coordinates."""
        left, right = self.left.mT @ bases.left.double(), self.right.mT @ bases.right.double()
        return BasisPair(left.to(bases.left), right.to(bases.right))

    def whole(self, bases: BasisPair) -> BasisPair:
        """Bases in coordinates of the span as bases of the whole problem."""
        # The wide side last, where QR has it contiguous: several times as fast.
        left, right = (
            (basis.double().mT @ span.mT).mT.to(basis)
            for basis, span in ((bases.left, self.left), (bases.right, self.right))
        )
        return BasisPair(left, right)


def has_few_wide_tasks(problem: UpdateProblem) -> bool:
    """Whether the tasks have fewer directions than both sides, and few enough for decompositions
    of them all: one QR of the wide sides then serves every step."""
    n, c = problem.updates.left.shape
    return 0 < c <= truncated.EXACT_SIDE and c < min(n, problem.updates.right.shape[0])


def in_span(problem: UpdateProblem) -> SpanProblem:
    """The problem in coordinates of its tasks' span, by one QR a side in float64."""
    updates = problem.updates
    left, left_core = torch.linalg.qr(updates.left.double())
    right, right_core = torch.linalg.qr(updates.right.double())
    core = CanonicalUpdates(
        left_core.to(updates.left), updates.sigma, right_core.to(updates.right), updates.ranks
    )
    return SpanProblem(left, right, replace(problem, updates=core))


@dataclass(frozen=True, eq=False)
class FrameProblem:
    """All tasks in coordinates of two frames that hold most of their weighed energy."""

    left: Tensor
    """n x l, orthonormal columns."""
    right: Tensor
    """d x l'."""
    problem: UpdateProblem
    """In the frames' coordinates; the directions of a task are not orthonormal there, and what is
    outside of the frames is lost whatever the bases."""

    def whole(self, bases: BasisPair) -> tuple[BasisPair, tuple[Tensor, Tensor]]:
        """Bases in the frames as bases of the whole problem, and what they see of each task."""
        core = self.problem.updates
        left, right = core.left.mT @ bases.left, core.right.mT @ bases.right
        seen = core.blocks(left), core.blocks(right)
        return BasisPair(self.left @ bases.left, self.right @ bases.right), seen


def frames_pay(problem: UpdateProblem, k: tuple[int, int]) -> bool:
    """Whether the tasks are many and their sides wide enough for frames to pay."""
    n, columns = problem.updates.left.shape
    d = problem.updates.right.shape[0]
    width = sketch_width(max(k), max(n, d), columns)
    wide = min(n, d) > max(truncated.EXACT_SIDE, 4 * width)
    return wide and min(k) > 0 and columns >= LEAST_SAMPLES * SAMPLE_COLUMNS * width


def in_frames(problem: UpdateProblem, k: tuple[int, int]) -> FrameProblem:
    """The tasks in frames that hold most of their weighed energy.

    Where single tasks' own directions might be the better bases, they are in the frames, too: this
    keeps ``joint`` from being worse than own SVDs of as many columns.
    """
    generator = torch.Generator().manual_seed(problem.seed)
    sample = _sample(problem, k, generator)
    left, left_held = _looked(problem, sample, k[0], generator)
    right, right_held = _looked(problem.flipped, sample.flipped, k[1], generator)
    ordered = strengths(problem.updates, problem.weights).sort(descending=True).values
    own = float(ordered[: min(k)].double().square().sum())
    # |P_L dW P_R|^2 >= |P_L dW|^2 + |dW P_R|^2 - |dW|^2: what the frames surely hold together.
    if left_held + right_held - problem.total < own:
        directions = own_directions(problem, k)
        left = torch.cat([left, directions.left], dim=1)
        right = torch.cat([right, directions.right], dim=1)
    left, right = orthonormal_float64(left), orthonormal_float64(right)
    core = CanonicalUpdates(
        _rows(problem.updates.left, left).mT,
        problem.updates.sigma,
        _rows(problem.updates.right, right).mT,
        problem.updates.ranks,
    )
    return FrameProblem(left, right, replace(problem, updates=core))


def _sample(
    problem: UpdateProblem, k: tuple[int, int], generator: torch.Generator
) -> UpdateProblem:
    """The problem of a few tasks drawn at random, in the order in which they come."""
    drawn, columns, tasks = torch.randperm(len(problem.weights), generator=generator), 0, 0
    n, d = problem.updates.left.shape[0], problem.updates.right.shape[0]
    # As if the tasks had columns without end: ``frames_pay`` has seen to it that there are enough.
    wanted = SAMPLE_COLUMNS * sketch_width(max(k), max(n, d), 1 << 30)
    while columns < wanted:
        columns += problem.updates.ranks[int(drawn[tasks])]
        tasks += 1
    return problem.select(sorted(drawn[:tasks].tolist()))


def _looked(
    problem: UpdateProblem, sample: UpdateProblem, k: int, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Directions of the left side, columns of length 1, and a lower bound of the energy that the
    best k of them hold: one step of subspace iteration on all tasks from the sample's."""
    start = truncated.leading(
        sample.updates,
        torch.diag_embed(sample.sigma * sample.weights.to(sample.sigma)[:, None]),
        k,
        dropped=0.0,
        # The sample only has to give a good start: a tenth is near enough.
        tol=1e-1,
        generator=generator,
    ).basis
    n, c = problem.updates.left.shape
    # Random columns for what the sample does not show. Drawn on the CPU whatever computes, so that
    # a seed means the same there.
    fresh = torch.randn(n, sketch_width(k, n, c) - start.shape[1], generator=generator).to(start)
    test = orthonormal_float64(torch.cat([start, fresh], dim=1))
    pushed = torch.zeros_like(test.mT)
    for tasks, part in problem.updates.slices():
        gains = strengths(part, problem.weights[tasks]).square()
        rows = part.left.mT
        pushed.addmm_(((rows @ test) * gains[:, None]).mT, rows)
    energies = rayleigh_ritz(test, pushed.mT)[0]
    return unit_columns(pushed.mT), float(energies[:k].sum())


def _rows(directions: Tensor, frame: Tensor) -> Tensor:
    """directions^T frame, c x l; the wide side last, as in ``updates.seen_by``."""
    return (frame.mT @ directions).mT.contiguous()
