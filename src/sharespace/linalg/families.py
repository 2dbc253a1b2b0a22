"""Families among many tasks: tasks of which one holds most of the others in its directions.

Leader clustering (Hartigan 1975, Clustering Algorithms, ch. 3): a task that nobody has claimed
claims all whose updates lie mostly in its own left and right directions. A few leaders, drawn at
random, find every family that holds more than a few percent of the tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sharespace.linalg.cores import captured, seen_by
from sharespace.linalg.joint import Problem

_LEADERS = 40
"""At most so many are asked; a family of a tenth of the tasks is missed once in 70 times."""
_MOST = 12
_LEAST = 3
_HELD = 0.5
"""Part of a member's energy in its leader's directions, both sides together."""


def families(problem: Problem) -> list[list[int]]:
    """Groups of tasks, the largest first; a task that is alone is in none."""
    updates = problem.updates
    norms = updates.norms.cpu()
    free = norms > 0
    generator = torch.Generator().manual_seed(problem.seed)
    order = torch.randperm(len(norms), generator=generator)
    found: list[list[int]] = []
    for leader in [int(i) for i in order if bool(free[i])][:_LEADERS]:
        if not bool(free[leader]):
            continue
        members = free & (_held(problem, leader) >= _HELD * norms.square())
        members[leader] = True
        if int(members.sum()) >= _LEAST:
            found.append([int(i) for i in members.nonzero().flatten()])
            free &= ~members
    return sorted(found, key=len, reverse=True)[:_MOST]


def _held(problem: Problem, leader: int) -> Tensor:
    """float64 [tasks]: energy of every update in one task's own left and right directions."""
    updates = problem.updates
    one = updates.select([leader])
    left, right = seen_by(updates, one.left), seen_by(updates.flipped, one.right)
    return captured(left, problem.sigma, right, None).cpu()
