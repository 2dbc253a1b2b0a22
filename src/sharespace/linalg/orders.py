"""Pairs of bases to choose from under a byte budget, in the order in which tasks use them.

A task may use the leading directions only. So it matters which come first: those that most tasks
need, or those of one family after the other, the largest first: a family then stores nothing for
the directions of those after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg.core_merge import new_directions
from sharespace.linalg.cores import seen_by
from sharespace.linalg.families import families
from sharespace.linalg.joint import Bases, Problem, hosvd

_SHARES = (0.9, 0.99, 0.999)
"""Of a family's energy on one side, in its own part of the bases."""
_ROUNDING = 1e-12
"""Energy of one task that may be left out of an orthonormal basis."""


@dataclass(frozen=True, eq=False)
class Order:
    """Orthonormal bases."""

    bases: Bases
    marks: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    """Numbers of left and of right directions at which a family's part ends."""


def orders(problem: Problem, limit: int) -> Iterator[Order]:
    """Bases of at most ``limit`` directions a side, one after the other.

    Args:
        problem: the tasks, weighed as the budget weighs them.
    """
    if not limit:
        return
    common = hosvd(problem, (limit, limit))
    yield Order(common)
    groups = families(problem)
    parts = [_only(problem, group) for group in groups]
    if len(groups) > 1 or (groups and len(groups[0]) < len(problem.updates.ranks)):
        for share in _SHARES:
            yield _by_family(problem, parts, common, share, limit)


def _only(problem: Problem, tasks: Sequence[int]) -> Problem:
    chosen = list(tasks)
    return Problem(problem.updates.select(chosen), problem.weights[chosen], problem.p, problem.seed)


def _by_family(
    problem: Problem, parts: Sequence[Problem], common: Bases, share: float, limit: int
) -> Order:
    sides = []
    for whole, some, rest in (
        (problem, list(parts), common.left),
        (problem.flipped, [p.flipped for p in parts], common.right),
    ):
        sides.append(_side(whole, some, rest, share, limit))
    (left, left_marks), (right, right_marks) = sides
    return Order(Bases(left, right), (left_marks, right_marks))


def _side(
    problem: Problem, parts: Sequence[Problem], rest: Tensor, share: float, limit: int
) -> tuple[Tensor, tuple[int, ...]]:
    """A left basis, and where the families' parts of it end."""
    basis, marks = rest[:, :0], []
    for part in parts:
        own = hosvd(part, (limit, 1)).left
        energies = _energies(part, own)
        enough = int((energies.cumsum(0) < share * energies.sum()).sum()) + 1
        weighed = own[:, :enough] * energies[:enough].sqrt().to(own)
        basis = torch.cat([basis, new_directions(basis, weighed, _ROUNDING)], dim=1)[:, :limit]
        marks.append(basis.shape[1])
    weighed = rest * _energies(problem, rest).sqrt().to(rest)
    basis = torch.cat([basis, new_directions(basis, weighed, _ROUNDING)], dim=1)[:, :limit]
    return basis, tuple(dict.fromkeys(m for m in marks if m))


def _energies(problem: Problem, left: Tensor) -> Tensor:
    """float64 [k]: weighed energy of all tasks along each direction of one side."""
    seen = seen_by(problem.updates, left).double()
    scaled = seen * (problem.sigma.double() * problem.weights[:, None])[..., None]
    return scaled.square().sum((0, 1))
