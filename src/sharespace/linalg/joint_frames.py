"""A start of ``joint`` for many tasks and wide sides: frames from a sample and one look at all.

As out of core (``range_search``): a side's leading directions in a random sample of the tasks,
after one step of subspace iteration on all of them, are a frame a little wider than k. The tasks in
both frames are a small problem; its solution takes the place of the HOSVD, at half of the cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharespace.linalg import truncated
from sharespace.linalg.canonical import Updates
from sharespace.linalg.joint_whole import Seen, own_directions, strengths
from sharespace.linalg.power import normal, orthonormal_columns, ritz, width
from sharespace.linalg.problem import Bases, Problem
from sharespace.linalg.range_search import SAMPLE

MANY = 3
"""Samples that the tasks have to be, to make one worth its cost."""


@dataclass(frozen=True, eq=False)
class InFrames:
    """All tasks in coordinates of two frames."""

    left: Tensor
    """n x l, orthonormal columns."""
    right: Tensor
    """d x l'."""
    problem: Problem
    """In the frames' coordinates; the directions of a task are not orthonormal there, and what is
    outside of the frames is lost whatever the bases."""

    def whole(self, problem: Problem, small: Bases) -> Seen:
        """Bases in the frames as bases of the whole problem, and what they see."""
        core = self.problem.updates
        left, right = core.left.mT @ small.left, core.right.mT @ small.right
        seen = core.blocks(left), core.blocks(right)
        bases = Bases(self.left @ small.left, self.right @ small.right)
        return Seen(bases, problem.seen_energy(*seen), *seen)


def many_wide(problem: Problem, k: tuple[int, int]) -> bool:
    """Whether the tasks are many and their sides wide enough."""
    sides = problem.updates.left.shape[0], problem.updates.right.shape[0]
    columns = problem.updates.left.shape[1]
    wide = min(sides) > max(truncated.EXACT_SIDE, 4 * width(max(k), max(sides), columns))
    return wide and min(k) > 0 and columns >= MANY * SAMPLE * width(max(k), max(sides), columns)


def in_frames(problem: Problem, k: tuple[int, int]) -> InFrames:
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
    core = Updates(
        _rows(problem.updates.left, left).mT,
        problem.updates.sigma,
        _rows(problem.updates.right, right).mT,
        problem.updates.ranks,
    )
    return InFrames(left, right, replace(problem, updates=core))


def _sample(problem: Problem, k: tuple[int, int], generator: torch.Generator) -> Problem:
    """The problem of a few tasks drawn at random."""
    drawn, columns, tasks = torch.randperm(len(problem.weights), generator=generator), 0, 0
    updates = problem.updates
    wanted = SAMPLE * width(max(k), max(updates.left.shape[0], updates.right.shape[0]), 1 << 30)
    while columns < wanted:
        columns += updates.ranks[int(drawn[tasks])]
        tasks += 1
    return problem.select(sorted(drawn[:tasks].tolist()))


def _looked(
    problem: Problem, sample: Problem, k: int, generator: torch.Generator
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
