"""From a point of a module's curve to the bases that are stored, and what each task takes."""

from __future__ import annotations

from dataclasses import dataclass

from sharespace.linalg.budget import Point, affordable
from sharespace.linalg.joint import Bases, Problem, joint
from sharespace.linalg.menu import Allocation
from sharespace.linalg.schemes import WAYS, Part, weighed, within


@dataclass(frozen=True, eq=False)
class Settled:
    """One subspace of a module, and the tasks that it is for."""

    tasks: tuple[int, ...]
    """Their numbers in the module."""
    bases: Bases
    chosen: Allocation
    """What each of them takes, in that order."""


def settle(
    problem: Problem, point: Point, itemsize: int, budget: int | None
) -> tuple[Settled, ...]:
    """The bases of a point and what each task takes of them, in no more than its bytes.

    The point's own bases, or those after sweeps over the tasks that use them, whichever lose less;
    so never more than the point says.

    Args:
        problem: as it was when the point was offered.
        point: one with common bases.
        budget: as it was then.
    """
    scheme = WAYS[point.scheme](problem, itemsize, affordable(problem, itemsize, budget))
    first = [
        _with(part, part.card.bases.first(k)) for part, k in zip(scheme, point.each, strict=True)
    ]
    found = within(first, point.nbytes)
    swept = [_swept(part, chosen) for part, chosen in zip(first, found, strict=True)]
    better = within(swept, point.nbytes)
    if weighed(swept, better) < weighed(first, found):
        first, found = swept, better
    return tuple(
        Settled(part.tasks, part.card.bases, chosen)
        for part, chosen in zip(first, found, strict=True)
    )


def _with(part: Part, bases: Bases) -> Part:
    return Part.of(part.problem, part.tasks, bases, part.card.itemsize)


def _swept(part: Part, chosen: Allocation) -> Part:
    """With bases that are the best for the tasks that use them."""
    if not chosen.inside:
        return part
    members = part.problem.select(chosen.inside)
    return _with(part, joint(members, part.card.bases.k, start=part.card.bases))
