"""Ways to share a module among its tasks: one subspace, or one for each family.

The subspaces of families are not orthogonal to each other: each is the best for its own tasks,
whose coefficients are as few as if there were no others (subspace clustering: Vidal 2011, "Subspace
Clustering", IEEE Signal Processing Magazine 28(2)). The bases are many then, and worth it where the
tasks are.

Spend a byte budget over modules: common bases, own SVDs, or both, whichever keeps more.

Each module offers points of (bytes, lost energy): the own SVDs of its tasks, column by column, and
what its tasks choose where every byte has the same price (``menu``), from dear to cheap. Greedy
along the lower hull of both, by energy per byte, is within one step of the best split. Energies
weigh a task by 1 / |dW_i over all modules|.

Families among many tasks: tasks of which one holds most of the others in its directions.

Leader clustering (Hartigan 1975, Clustering Algorithms, ch. 3): a task that nobody has claimed
claims all whose updates lie mostly in its own left and right directions. A few leaders, drawn at
random, find every family that holds more than a few percent of the tasks.

From a point of a module's curve to the bases that are stored, and what each task takes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharespace.linalg.budget.layer_options import Allocation, Menu, menu
from sharespace.linalg.joint import Bases, Problem, hosvd, joint
from sharespace.linalg.updates import Updates, captured, seen_by


@dataclass(frozen=True, eq=False)
class Part:
    """Some tasks of a module, and what they may take of a subspace that is theirs."""

    tasks: tuple[int, ...]
    """Their numbers in the module."""
    problem: Problem
    """Theirs alone."""
    card: Menu

    @classmethod
    def of(cls, problem: Problem, tasks: Sequence[int], bases: Bases, itemsize: int) -> Part:
        """Args:
        problem: of the tasks alone.
        """
        return cls(tuple(tasks), problem, menu(problem, bases, itemsize))

    def at(self, price: float, k: tuple[int, int] | None = None) -> Allocation:
        """See ``Menu.at``."""
        return self.card.at(price, self.problem.weights, k)


Scheme = tuple[Part, ...]
"""Every task of the module is in one of them."""


def one_subspace(problem: Problem, itemsize: int, limit: int) -> Scheme:
    """All tasks in one.

    Args:
        problem: of the module, weighed as the budget weighs it.
        itemsize: bytes of a stored number.
        limit: most directions a side of one subspace; 0: there is no scheme.
    """
    everyone = range(len(problem.updates.ranks))
    return (_part(problem, everyone, itemsize, limit),) if limit else ()


def by_family(problem: Problem, itemsize: int, limit: int) -> Scheme:
    """One for each family, and one for the tasks that are in none; empty without families."""
    groups = families(problem) if limit else []
    alone = sorted(set(range(len(problem.updates.ranks))) - {i for g in groups for i in g})
    parts = [*groups, alone] if alone else groups
    if len(parts) < 2:
        return ()
    return tuple(_part(problem.select(tasks), tasks, itemsize, limit) for tasks in parts)


WAYS = one_subspace, by_family
"""The ways to share a module."""

_PRICE_RANGE = 1e-30, 1e6
"""Weighed energies are at most 1 a task, and nothing below the rounding of float64 counts."""

_BISECTIONS = 48

_PRICE_STEPS = 56

_STEP = 1.6
"""Prices of a byte that are tried: over 56 steps the lost energy falls by about 1e11."""

_LEADERS = 40
"""At most so many are asked; a family of a tenth of the tasks is missed once in 70 times."""

_MOST = 12

_LEAST = 3

_HELD = 0.5
"""Part of a member's energy in its leader's directions, both sides together."""


def _part(problem: Problem, tasks: Sequence[int], itemsize: int, limit: int) -> Part:
    return Part.of(problem, tasks, hosvd(problem, (limit, limit)), itemsize)


def within(scheme: Sequence[Part], nbytes: int) -> list[Allocation]:
    """The best choices of all tasks, with all directions of the parts, in so many bytes.

    One price for all parts, so that bytes go where they keep most. The bases alone must fit.
    """
    low, high = _PRICE_RANGE
    found = _all_at(high, scheme)
    for _ in range(_BISECTIONS):
        price = (low * high) ** 0.5
        here = _all_at(price, scheme)
        if sum(chosen.nbytes for chosen in here) <= nbytes:
            high, found = price, here
        else:
            low = price
    return found


def _all_at(price: float, scheme: Sequence[Part]) -> list[Allocation]:
    return [part.at(price, part.card.bases.k) for part in scheme]


def weighed(scheme: Sequence[Part], found: Sequence[Allocation]) -> float:
    """Weighed energy that all tasks lose together."""
    return sum(
        chosen.weighed(part.problem.weights) for part, chosen in zip(scheme, found, strict=True)
    )


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
