"""Ways to share a module among its tasks: one subspace, or one for each family.

The subspaces of families are not orthogonal to each other: each is the best for its own tasks,
whose coefficients are as few as if there were no others (subspace clustering: Vidal 2011, "Subspace
Clustering", IEEE Signal Processing Magazine 28(2)). The bases are many then, and worth it where the
tasks are.

Spend a byte budget over modules: common bases, own SVDs, or both, whichever keeps more.

Each module offers points of (bytes, lost energy): the own SVDs of its tasks, column by column, and
what its tasks choose where every byte has the same price (``task_options``), from dear to cheap.
Greedy along the lower hull of both, by energy per byte, is within one step of the best split.
Energies weigh a task by 1 / |dW_i over all modules|.

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

from sharespace.linalg.budget.task_options import TaskChoices, TaskOptions, task_options
from sharespace.linalg.joint import hosvd, joint
from sharespace.linalg.problem import BasisPair, UpdateProblem
from sharespace.linalg.updates import CanonicalUpdates, captured, seen_by


@dataclass(frozen=True, eq=False)
class TaskGroup:
    """Some tasks of a module, and what they may take of a subspace that is theirs."""

    tasks: tuple[int, ...]
    """Their numbers in the module."""
    problem: UpdateProblem
    """Theirs alone."""
    options: TaskOptions

    @classmethod
    def of(
        cls, problem: UpdateProblem, tasks: Sequence[int], bases: BasisPair, itemsize: int
    ) -> TaskGroup:
        """Args:
        problem: of the tasks alone.
        """
        return cls(tuple(tasks), problem, task_options(problem, bases, itemsize))

    def choose(self, price: float, k: tuple[int, int] | None = None) -> TaskChoices:
        """See ``TaskOptions.choose``."""
        return self.options.choose(price, self.problem.weights, k)


Grouping = tuple[TaskGroup, ...]
"""Every task of the module is in one of them."""


def one_subspace(problem: UpdateProblem, itemsize: int, limit: int) -> Grouping:
    """All tasks in one.

    Args:
        problem: of the module, weighed as the budget weighs it.
        itemsize: bytes of a stored number.
        limit: most directions a side of one subspace; 0: there is no scheme.
    """
    everyone = range(len(problem.updates.ranks))
    return (_part(problem, everyone, itemsize, limit),) if limit else ()


def by_family(problem: UpdateProblem, itemsize: int, limit: int) -> Grouping:
    """One for each family, and one for the tasks that are in none; empty without families."""
    groups = find_groups(problem) if limit else []
    alone = sorted(set(range(len(problem.updates.ranks))) - {i for g in groups for i in g})
    parts = [*groups, alone] if alone else groups
    if len(parts) < 2:
        return ()
    return tuple(_part(problem.select(tasks), tasks, itemsize, limit) for tasks in parts)


GROUPINGS = one_subspace, by_family
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


def _part(problem: UpdateProblem, tasks: Sequence[int], itemsize: int, limit: int) -> TaskGroup:
    return TaskGroup.of(problem, tasks, hosvd(problem, (limit, limit)), itemsize)


def within(scheme: Sequence[TaskGroup], nbytes: int) -> list[TaskChoices]:
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


def _all_at(price: float, scheme: Sequence[TaskGroup]) -> list[TaskChoices]:
    return [part.choose(price, part.options.bases.k) for part in scheme]


def weighed(scheme: Sequence[TaskGroup], found: Sequence[TaskChoices]) -> float:
    """Weighed energy that all tasks lose together."""
    return sum(
        chosen.weighed(part.problem.weights) for part, chosen in zip(scheme, found, strict=True)
    )


@dataclass(frozen=True, slots=True)
class LayerOption:
    """One way to store a module."""

    nbytes: int
    lost: float
    """Weighed energy of the module that is not kept."""
    columns: int = 0
    """Columns of all own SVDs together, where all tasks are stored so."""
    group_ks: tuple[tuple[int, int], ...] = ()
    """Directions of each subspace, one for all tasks or one for each family; none: own SVDs."""
    grouping: int = 0
    """Which way to share the module: its number in ``GROUPINGS``."""

    @property
    def is_own(self) -> bool:
        """All tasks are stored by their own SVDs."""
        return not self.group_ks


@dataclass(frozen=True, eq=False)
class LayerOptions:
    """All that the split of a budget needs to know of a module."""

    sides: int
    """n + d."""
    itemsize: int
    own: Tensor
    """float64 [tasks, r]: energy of each singular direction, descending, zero-padded."""
    shared: tuple[LayerOption, ...] = ()
    """Ways with common bases, at one price of a byte each."""

    @property
    def energies(self) -> Tensor:
        """float64 [tasks]: |dW_i|^2."""
        return self.own.sum(1)

    def affordable(self, weights: Tensor, budget: int) -> list[LayerOption]:
        """All ways, as far as the budget reaches.

        Args:
            weights: float64 [tasks], 1 / |dW_i over all modules|.
        """
        # Summed from the faintest: what is left after the c strongest columns.
        strength = (weights.square()[:, None] * self.own).flatten()
        left = strength.sort().values.cumsum(0).flip(0).tolist()
        column = self.itemsize * self.sides
        own = [LayerOption(column * c, e, columns=c) for c, e in enumerate([*left, 0.0])]
        return [p for p in (*own, *self.shared) if p.nbytes <= budget]

    def own_ranks(self, weights: Tensor, columns: int) -> list[int]:
        """How many singular directions each task keeps when all keep ``columns`` together."""
        strength = (weights.square()[:, None] * self.own).flatten()
        chosen = torch.zeros_like(strength)
        chosen[strength.argsort(descending=True, stable=True)[:columns]] = 1
        return [int(x) for x in chosen.reshape(self.own.shape).sum(1)]


def own_svd_options(updates: CanonicalUpdates, itemsize: int) -> LayerOptions:
    """Profile of a module with own SVDs only."""
    own = updates.blocks(updates.sigma).double().square().cpu()
    return LayerOptions(updates.left.shape[0] + updates.right.shape[0], itemsize, own)


def layer_options(problem: UpdateProblem, itemsize: int, budget: int | None = None) -> LayerOptions:
    """Profile of a module; no common bases that alone would cost more than the budget.

    Args:
        problem: with the weights 1 / |dW_i over all modules|.
    """
    own = own_svd_options(problem.updates, itemsize)
    shared: list[LayerOption] = []
    limit = affordable(problem, itemsize, budget)
    for number, way in enumerate(GROUPINGS):
        shared += _curve(way(problem, itemsize, limit), number)
    return replace(own, shared=tuple(shared))


def affordable(problem: UpdateProblem, itemsize: int, budget: int | None) -> int:
    """Most directions a side that a budget pays for."""
    n, d = problem.updates.left.shape[0], problem.updates.right.shape[0]
    return min(n, d) if budget is None else min(n, d, budget // (itemsize * (n + d)))


def _curve(scheme: Grouping, number: int) -> list[LayerOption]:
    """What the tasks choose from a price at which nothing is worth it down to rounding."""
    highest = max((_highest_price(part) for part in scheme), default=0.0)
    points: dict[int, LayerOption] = {}
    for step in range(_PRICE_STEPS if highest > 0 else 0):
        here = [part.choose(highest * _STEP**-step) for part in scheme]
        if any(chosen.k != (0, 0) for chosen in here):
            nbytes = sum(chosen.nbytes for chosen in here)
            points[nbytes] = LayerOption(
                nbytes, weighed(scheme, here), group_ks=tuple(c.k for c in here), grouping=number
            )
    return list(points.values())


def _highest_price(part: TaskGroup) -> float:
    energies = part.problem.weights.square().cpu() * part.options.own_lost[:, 0]
    return float(energies.sum()) / (part.options.itemsize * sum(part.options.sides))


def split_budget(offers: Sequence[Sequence[LayerOption]], budget: int) -> list[LayerOption]:
    """One point for each module, within the budget, that lose as little energy as found.

    Never more than own SVDs alone would lose at the same bytes.
    """
    mixed = _greedy([_hull(points) for points in offers], offers, budget)
    only_own = [[p for p in points if p.is_own] for points in offers]
    own = _greedy([_hull(points) for points in only_own], only_own, budget)
    return min(mixed, own, key=lambda points: sum(p.lost for p in points))


def spread_remaining(points: Sequence[LayerOption], budget: int) -> list[LayerOption]:
    """The points with what they leave of the budget, given to those with common bases.

    These can use any number of bytes (``allocate``), and in proportion to what they have.
    """
    flexible = sum(p.nbytes for p in points if not p.is_own)
    left = budget - sum(p.nbytes for p in points)
    return [
        p if p.is_own else replace(p, nbytes=p.nbytes + left * p.nbytes // flexible) for p in points
    ]


def _hull(points: Sequence[LayerOption]) -> list[LayerOption]:
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


def _slope(a: LayerOption, b: LayerOption) -> float:
    return (a.lost - b.lost) / (b.nbytes - a.nbytes)


def _greedy(
    hulls: Sequence[list[LayerOption]], offers: Sequence[Sequence[LayerOption]], budget: int
) -> list[LayerOption]:
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


def _spend_rest(
    chosen: list[LayerOption], offers: Sequence[Sequence[LayerOption]], left: int
) -> list[LayerOption]:
    """What is left goes to points that are not on the hull, module by module."""
    result = []
    for now, points in zip(chosen, offers, strict=True):
        fits = [p for p in points if p.nbytes - now.nbytes <= left and p.lost < now.lost]
        best = min(fits, key=lambda p: (p.lost, p.nbytes), default=now)
        left -= best.nbytes - now.nbytes
        result.append(best)
    return result


def find_groups(problem: UpdateProblem) -> list[list[int]]:
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


def _held(problem: UpdateProblem, leader: int) -> Tensor:
    """float64 [tasks]: energy of every update in one task's own left and right directions."""
    updates = problem.updates
    one = updates.select([leader])
    left, right = seen_by(updates, one.left), seen_by(updates.flipped, one.right)
    return captured(left, problem.sigma, right, None).cpu()


@dataclass(frozen=True, eq=False)
class GroupSubspace:
    """One subspace of a module, and the tasks that it is for."""

    tasks: tuple[int, ...]
    """Their numbers in the module."""
    bases: BasisPair
    choices: TaskChoices
    """What each of them takes, in that order."""


def allocate(
    problem: UpdateProblem, point: LayerOption, itemsize: int, budget: int | None
) -> tuple[GroupSubspace, ...]:
    """The bases of a point and what each task takes of them, in no more than its bytes.

    The point's own bases, or those after sweeps over the tasks that use them, whichever lose less;
    so never more than the point says.

    Args:
        problem: as it was when the point was offered.
        point: one with common bases.
        budget: as it was then.
    """
    scheme = GROUPINGS[point.grouping](problem, itemsize, affordable(problem, itemsize, budget))
    first = [
        _with(part, part.options.bases.first(k))
        for part, k in zip(scheme, point.group_ks, strict=True)
    ]
    found = within(first, point.nbytes)
    swept = [_swept(part, chosen) for part, chosen in zip(first, found, strict=True)]
    better = within(swept, point.nbytes)
    if weighed(swept, better) < weighed(first, found):
        first, found = swept, better
    return tuple(
        GroupSubspace(part.tasks, part.options.bases, chosen)
        for part, chosen in zip(first, found, strict=True)
    )


def _with(part: TaskGroup, bases: BasisPair) -> TaskGroup:
    return TaskGroup.of(part.problem, part.tasks, bases, part.options.itemsize)


def _swept(part: TaskGroup, chosen: TaskChoices) -> TaskGroup:
    """With bases that are the best for the tasks that use them."""
    if not chosen.inside:
        return part
    members = part.problem.select(chosen.inside)
    return _with(part, joint(members, part.options.bases.k, start=part.options.bases))
