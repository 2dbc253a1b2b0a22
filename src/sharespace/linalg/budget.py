"""Spend a byte budget over modules: common bases, own SVDs, or both, whichever keeps more.

Each module offers points of (bytes, lost energy): the own SVDs of its tasks, column by column, and
what its tasks choose where every byte has the same price (``menu``), from dear to cheap. Greedy
along the lower hull of both, by energy per byte, is within one step of the best split. Energies
weigh a task by 1 / |dW_i over all modules|.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharespace.linalg.canonical import Updates
from sharespace.linalg.joint import Problem
from sharespace.linalg.schemes import WAYS, Part, Scheme, weighed


@dataclass(frozen=True, slots=True)
class Point:
    """One way to store a module."""

    nbytes: int
    lost: float
    """Weighed energy of the module that is not kept."""
    columns: int = 0
    """Columns of all own SVDs together, where all tasks are stored so."""
    each: tuple[tuple[int, int], ...] = ()
    """Directions of each subspace, one for all tasks or one for each family; none: own SVDs."""
    scheme: int = 0
    """Which way to share the module: its number in ``WAYS``."""

    @property
    def is_own(self) -> bool:
        """All tasks are stored by their own SVDs."""
        return not self.each


_PRICE_STEPS = 56
_STEP = 1.6
"""Prices of a byte that are tried: over 56 steps the lost energy falls by about 1e11."""


@dataclass(frozen=True, eq=False)
class Profile:
    """All that the split of a budget needs to know of a module."""

    sides: int
    """n + d."""
    itemsize: int
    own: Tensor
    """float64 [tasks, r]: energy of each singular direction, descending, zero-padded."""
    shared: tuple[Point, ...] = ()
    """Ways with common bases, at one price of a byte each."""

    @property
    def energies(self) -> Tensor:
        """float64 [tasks]: |dW_i|^2."""
        return self.own.sum(1)

    def points(self, weights: Tensor, budget: int) -> list[Point]:
        """All ways, as far as the budget reaches.

        Args:
            weights: float64 [tasks], 1 / |dW_i over all modules|.
        """
        # Summed from the faintest: what is left after the c strongest columns.
        strength = (weights.square()[:, None] * self.own).flatten()
        left = strength.sort().values.cumsum(0).flip(0).tolist()
        column = self.itemsize * self.sides
        own = [Point(column * c, e, columns=c) for c, e in enumerate([*left, 0.0])]
        return [p for p in (*own, *self.shared) if p.nbytes <= budget]

    def own_ranks(self, weights: Tensor, columns: int) -> list[int]:
        """How many singular directions each task keeps when all keep ``columns`` together."""
        strength = (weights.square()[:, None] * self.own).flatten()
        chosen = torch.zeros_like(strength)
        chosen[strength.argsort(descending=True, stable=True)[:columns]] = 1
        return [int(x) for x in chosen.reshape(self.own.shape).sum(1)]


def own_profile(updates: Updates, itemsize: int) -> Profile:
    """Profile of a module with own SVDs only."""
    own = updates.blocks(updates.sigma).double().square().cpu()
    return Profile(updates.left.shape[0] + updates.right.shape[0], itemsize, own)


def profile(problem: Problem, itemsize: int, budget: int | None = None) -> Profile:
    """Profile of a module; no common bases that alone would cost more than the budget.

    Args:
        problem: with the weights 1 / |dW_i over all modules|.
    """
    own = own_profile(problem.updates, itemsize)
    shared: list[Point] = []
    limit = affordable(problem, itemsize, budget)
    for number, way in enumerate(WAYS):
        shared += _curve(way(problem, itemsize, limit), number)
    return replace(own, shared=tuple(shared))


def affordable(problem: Problem, itemsize: int, budget: int | None) -> int:
    """Most directions a side that a budget pays for."""
    n, d = problem.updates.left.shape[0], problem.updates.right.shape[0]
    return min(n, d) if budget is None else min(n, d, budget // (itemsize * (n + d)))


def _curve(scheme: Scheme, number: int) -> list[Point]:
    """What the tasks choose from a price at which nothing is worth it down to rounding."""
    highest = max((_highest_price(part) for part in scheme), default=0.0)
    points: dict[int, Point] = {}
    for step in range(_PRICE_STEPS if highest > 0 else 0):
        here = [part.at(highest * _STEP**-step) for part in scheme]
        if any(chosen.k != (0, 0) for chosen in here):
            nbytes = sum(chosen.nbytes for chosen in here)
            points[nbytes] = Point(
                nbytes, weighed(scheme, here), each=tuple(c.k for c in here), scheme=number
            )
    return list(points.values())


def _highest_price(part: Part) -> float:
    energies = part.problem.weights.square().cpu() * part.card.private[:, 0]
    return float(energies.sum()) / (part.card.itemsize * sum(part.card.sides))


def spend(offers: Sequence[Sequence[Point]], budget: int) -> list[Point]:
    """One point for each module, within the budget, that lose as little energy as found.

    Never more than own SVDs alone would lose at the same bytes.
    """
    mixed = _greedy([_hull(points) for points in offers], offers, budget)
    only_own = [[p for p in points if p.is_own] for points in offers]
    own = _greedy([_hull(points) for points in only_own], only_own, budget)
    return min(mixed, own, key=lambda points: sum(p.lost for p in points))


def stretched(points: Sequence[Point], budget: int) -> list[Point]:
    """The points with what they leave of the budget, given to those with common bases.

    These can use any number of bytes (``settle``), and in proportion to what they have.
    """
    flexible = sum(p.nbytes for p in points if not p.is_own)
    left = budget - sum(p.nbytes for p in points)
    return [
        p if p.is_own else replace(p, nbytes=p.nbytes + left * p.nbytes // flexible) for p in points
    ]


def _hull(points: Sequence[Point]) -> list[Point]:
    """The lower convex hull, from nothing at all upwards."""
    ordered = sorted(points, key=lambda p: (p.nbytes, p.lost))
    hull = ordered[:1]
    for point in ordered[1:]:
        if point.lost >= hull[-1].lost or point.nbytes == hull[-1].nbytes:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: Point, b: Point) -> float:
    return (a.lost - b.lost) / (b.nbytes - a.nbytes)


def _greedy(
    hulls: Sequence[list[Point]], offers: Sequence[Sequence[Point]], budget: int
) -> list[Point]:
    at = [0] * len(hulls)
    left = budget
    heap = [(-_slope(h[0], h[1]), m) for m, h in enumerate(hulls) if len(h) > 1]
    heapq.heapify(heap)
    while heap:
        _, m = heapq.heappop(heap)
        step = hulls[m][at[m] + 1].nbytes - hulls[m][at[m]].nbytes
        if step > left:
            continue
        at[m], left = at[m] + 1, left - step
        if at[m] + 1 < len(hulls[m]):
            heapq.heappush(heap, (-_slope(hulls[m][at[m]], hulls[m][at[m] + 1]), m))
    chosen = [hull[i] for hull, i in zip(hulls, at, strict=True)]
    return _spend_rest(chosen, offers, left)


def _spend_rest(chosen: list[Point], offers: Sequence[Sequence[Point]], left: int) -> list[Point]:
    """What is left goes to points that are not on the hull, module by module."""
    result = []
    for now, points in zip(chosen, offers, strict=True):
        fits = [p for p in points if p.nbytes - now.nbytes <= left and p.lost < now.lost]
        best = min(fits, key=lambda p: (p.lost, p.nbytes), default=now)
        left -= best.nbytes - now.nbytes
        result.append(best)
    return result
