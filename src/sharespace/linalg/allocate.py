"""From a byte budget to what each layer and each of its tasks stores (docs/method.md, "Rate
allocation").

Each layer offers options of (bytes, lost energy): the own SVDs of its tasks, column by column, and
what its tasks choose in common bases where every byte has the same price, from dear to cheap, with
one subspace for all tasks and with one for each group of them. Group subspaces are not orthogonal
to each other: each is the best for its own tasks, whose coefficients are as few as if there were no
others (subspace clustering: Vidal 2011, "Subspace Clustering", IEEE Signal Processing Magazine
28(2)). Taking the steps along the lower hulls of all layers by energy per byte is within one step
of the best split. Energies weigh a task by 1 / |dW_i over all layers|.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharespace.linalg.joint import hosvd, joint
from sharespace.linalg.problem import BasisPair, UpdateProblem
from sharespace.linalg.task_options import TaskChoices, TaskOptions, task_options
from sharespace.linalg.updates import CanonicalUpdates, captured, seen_by

_PRICE_RANGE = 1e-30, 1e6
"""Least and largest price of a byte: weighed energies are at most 1 a task, and nothing below the
rounding of float64 counts."""
_BISECTIONS = 48
"""Bisections of the logarithm of the price, after which it is known to 3e-13 of itself."""
_PRICE_STEPS = 56
"""Prices at which the options of a grouping are taken."""
_PRICE_RATIO = 1.6
"""Ratio of a price to the one before: over 56 steps the lost energy falls by about 1e11."""

_LEADERS = 40
"""Most tasks that propose a group: such a task, the leader, offers its own directions, and the
tasks join whose energy lies mostly in them. A group of a tenth of the tasks is missed once in 70
times."""
_MOST_GROUPS = 12
"""Most groups of a layer; the tasks of further groups are in the subspace of the rest."""
_LEAST_TASKS = 3
"""Fewest tasks of a group; the tasks of smaller ones are in the subspace of the rest."""
_HELD = 0.5
"""Least fraction of a member's energy in its leader's directions, both sides together."""


@dataclass(frozen=True, slots=True)
class LayerOption:
    """One way to store a layer."""

    nbytes: int
    lost: float
    """Weighed energy of the layer that is not kept."""
    columns: int = 0
    """Columns of all own SVDs together, where all tasks are stored so."""
    group_ks: tuple[tuple[int, int], ...] = ()
    """(k_left, k_right) of each subspace, one for all tasks or one for each group; none: own
    SVDs."""
    grouping: int = 0
    """Which tasks share a subspace: the number of the function in ``GROUPINGS``."""

    @property
    def is_own(self) -> bool:
        """Whether all tasks are stored by their own SVDs."""
        return not self.group_ks


@dataclass(frozen=True, eq=False)
class LayerOptions:
    """All that the split of a budget needs to know of a layer."""

    sides: int
    """n + d, the numbers of one direction on both sides."""
    itemsize: int
    """s, bytes of a stored number."""
    own: Tensor
    """float64 [tasks, r]: energy of each singular direction, descending, zero-padded."""
    shared: tuple[LayerOption, ...] = ()
    """Those with common bases, each at one price of a byte."""

    @property
    def energies(self) -> Tensor:
        """float64 [tasks]: |dW_i|^2."""
        return self.own.sum(1)

    def affordable(self, weights: Tensor, budget: int) -> list[LayerOption]:
        """All options, as far as the budget reaches.

        Args:
            weights: float64 [tasks], 1 / |dW_i over all layers|.
            budget: bytes of all layers together.
        """
        # Summed from the faintest: what is lost after the c strongest columns, exact however small.
        lost = self._strengths(weights).sort().values.cumsum(0).flip(0).tolist()
        column = self.itemsize * self.sides
        own = [LayerOption(column * c, e, columns=c) for c, e in enumerate([*lost, 0.0])]
        return [option for option in (*own, *self.shared) if option.nbytes <= budget]

    def own_ranks(self, weights: Tensor, columns: int) -> list[int]:
        """How many singular directions each task keeps when all keep ``columns`` together."""
        strengths = self._strengths(weights)
        taken = torch.zeros_like(strengths)
        taken[strengths.argsort(descending=True, stable=True)[:columns]] = 1
        return [int(x) for x in taken.reshape(self.own.shape).sum(1)]

    def _strengths(self, weights: Tensor) -> Tensor:
        """[tasks r]: weighed energy of every singular direction."""
        return (weights.square()[:, None] * self.own).flatten()


def own_svd_options(updates: CanonicalUpdates, itemsize: int) -> LayerOptions:
    """The options of a layer with own SVDs only.

    Args:
        updates: of the layer's tasks.
        itemsize: s, bytes of a stored number.
    """
    own = updates.blocks(updates.sigma).double().square().cpu()
    return LayerOptions(updates.left.shape[0] + updates.right.shape[0], itemsize, own)


def layer_options(problem: UpdateProblem, itemsize: int, budget: int | None = None) -> LayerOptions:
    """The options of a layer; no common bases that alone would cost more than the budget.

    Args:
        problem: of the layer, with the weights w_i = 1 / |dW_i over all layers|.
        itemsize: s, bytes of a stored number.
        budget: bytes of all layers together; None: no limit.
    """
    limit = _most_directions(problem, itemsize, budget)
    shared: list[LayerOption] = []
    # Each grouping in turn, so that the options of one are gone before those of the next are made.
    for number, grouping in enumerate(GROUPINGS):
        shared += _priced(grouping(problem, itemsize, limit), number)
    return replace(own_svd_options(problem.updates, itemsize), shared=tuple(shared))


def _most_directions(problem: UpdateProblem, itemsize: int, budget: int | None) -> int:
    """Most directions a side that a budget pays for."""
    n, d = problem.updates.left.shape[0], problem.updates.right.shape[0]
    return min(n, d) if budget is None else min(n, d, budget // (itemsize * (n + d)))


def _priced(groups: Sequence[TaskGroup], number: int) -> list[LayerOption]:
    """What the tasks choose, from a price at which nothing is worth it down to rounding."""
    highest = max((group.highest_price for group in groups), default=0.0)
    options: dict[int, LayerOption] = {}
    for step in range(_PRICE_STEPS if highest > 0 else 0):
        choices = [group.choose(highest * _PRICE_RATIO**-step) for group in groups]
        if any(choice.k != (0, 0) for choice in choices):
            nbytes = sum(choice.nbytes for choice in choices)
            ks = tuple(choice.k for choice in choices)
            lost = weighed_loss(groups, choices)
            options[nbytes] = LayerOption(nbytes, lost, group_ks=ks, grouping=number)
    return list(options.values())


def split_budget(offers: Sequence[Sequence[LayerOption]], budget: int) -> list[LayerOption]:
    """One option for each layer, within the budget, that lose as little energy as found.

    Never more than own SVDs alone would lose at the same bytes.

    Args:
        offers: the options of each layer; an option of 0 bytes (the layer is left out) is among
            them.
        budget: bytes of all layers together.
    """
    only_own = [[option for option in options if option.is_own] for options in offers]
    mixed, own = _steepest_first(offers, budget), _steepest_first(only_own, budget)
    # Both, because a large step to common bases can leave too few bytes for the other layers.
    return min(mixed, own, key=lambda options: sum(option.lost for option in options))


def spread_remaining(options: Sequence[LayerOption], budget: int) -> list[LayerOption]:
    """The options with the bytes that remain of the budget, given to those with common bases.

    These can use any number of bytes (``allocate``), and get them in proportion to what they have.
    """
    flexible = sum(option.nbytes for option in options if not option.is_own)
    remaining = budget - sum(option.nbytes for option in options)
    return [
        option
        if option.is_own
        else replace(option, nbytes=option.nbytes + remaining * option.nbytes // flexible)
        for option in options
    ]


def _steepest_first(offers: Sequence[Sequence[LayerOption]], budget: int) -> list[LayerOption]:
    """Steps along the lower hulls of all layers, the one that gains most for a byte first."""
    hulls = [_lower_hull(options) for options in offers]
    taken = [0] * len(hulls)
    remaining = budget
    steps = [(-_slope(hull[0], hull[1]), m) for m, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, m = heapq.heappop(steps)
        hull = hulls[m]
        cost = hull[taken[m] + 1].nbytes - hull[taken[m]].nbytes
        if cost > remaining:
            # The layer is done: its later steps start from this one. Others may have smaller ones.
            continue
        taken[m], remaining = taken[m] + 1, remaining - cost
        if taken[m] + 1 < len(hull):
            heapq.heappush(steps, (-_slope(hull[taken[m]], hull[taken[m] + 1]), m))
    options = [hull[i] for hull, i in zip(hulls, taken, strict=True)]
    return _spend_remaining(options, offers, remaining)


def _lower_hull(options: Sequence[LayerOption]) -> list[LayerOption]:
    """The lower convex hull of lost energy over bytes, from no bytes upwards."""
    ordered = sorted(options, key=lambda option: (option.nbytes, option.lost))
    hull = ordered[:1]
    for option in ordered[1:]:
        # Not >, so that no bytes are bought for nothing.
        if option.lost >= hull[-1].lost or option.nbytes == hull[-1].nbytes:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(small: LayerOption, large: LayerOption) -> float:
    """Weighed energy that a byte gains."""
    return (small.lost - large.lost) / (large.nbytes - small.nbytes)


def _spend_remaining(
    options: list[LayerOption], offers: Sequence[Sequence[LayerOption]], remaining: int
) -> list[LayerOption]:
    """What remains of the budget goes to options that are not on the hull, layer by layer."""
    result = []
    for option, offered in zip(options, offers, strict=True):
        better = [
            larger
            for larger in offered
            if larger.nbytes - option.nbytes <= remaining and larger.lost < option.lost
        ]
        best = min(better, key=lambda o: (o.lost, o.nbytes), default=option)
        remaining -= best.nbytes - option.nbytes
        result.append(best)
    return result


@dataclass(frozen=True, eq=False)
class GroupSubspace:
    """One subspace of a layer, the tasks that it is for, and what they store in it."""

    tasks: tuple[int, ...]
    """Their numbers in the layer."""
    bases: BasisPair
    choices: TaskChoices
    """What each of them takes, in that order."""


def allocate(
    problem: UpdateProblem, option: LayerOption, itemsize: int, budget: int | None
) -> tuple[GroupSubspace, ...]:
    """The bases of a layer's option and what each task takes of them, in no more than its bytes.

    The bases as they were found for the option, or those after sweeps over the tasks that use
    them, whichever lose less; so never more than the option says.

    Args:
        problem: of the layer, as it was when the option was offered.
        option: one with common bases.
        itemsize: s, bytes of a stored number.
        budget: as it was when the option was offered.
    """
    limit = _most_directions(problem, itemsize, budget)
    offered = GROUPINGS[option.grouping](problem, itemsize, limit)
    groups = [
        group.with_bases(group.options.bases.first(k))
        for group, k in zip(offered, option.group_ks, strict=True)
    ]
    choices = choices_within(groups, option.nbytes)
    # The bases were found for all tasks; those stored by their own SVDs need not be in them.
    swept = [group.swept_for(choice) for group, choice in zip(groups, choices, strict=True)]
    swept_choices = choices_within(swept, option.nbytes)
    if weighed_loss(swept, swept_choices) < weighed_loss(groups, choices):
        groups, choices = swept, swept_choices
    return tuple(
        GroupSubspace(group.tasks, group.options.bases, choice)
        for group, choice in zip(groups, choices, strict=True)
    )


@dataclass(frozen=True, eq=False)
class TaskGroup:
    """Some tasks of a layer, and their options in a subspace that is theirs."""

    tasks: tuple[int, ...]
    """Their numbers in the layer."""
    problem: UpdateProblem
    """The updates of these tasks alone, with their weights."""
    options: TaskOptions

    @classmethod
    def of(
        cls, problem: UpdateProblem, tasks: Sequence[int], itemsize: int, limit: int
    ) -> TaskGroup:
        """A group with HOSVD bases.

        Args:
            problem: of the tasks alone.
            tasks: their numbers in the layer.
            itemsize: s, bytes of a stored number.
            limit: most directions a side.
        """
        bases = hosvd(problem, (limit, limit))
        return cls(tuple(tasks), problem, task_options(problem, bases, itemsize))

    @property
    def highest_price(self) -> float:
        """A price of a byte above which no task of the group takes anything: all of its energy for
        one direction a side."""
        energies = self.problem.weights.square().cpu() * self.options.own_lost[:, 0]
        return float(energies.sum()) / (self.options.itemsize * sum(self.options.sides))

    def choose(self, price: float, k: tuple[int, int] | None = None) -> TaskChoices:
        """What the tasks choose at a price of a byte; see ``TaskOptions.choose``."""
        return self.options.choose(price, self.problem.weights, k)

    def with_bases(self, bases: BasisPair) -> TaskGroup:
        """The same tasks with their options in other bases."""
        return replace(self, options=task_options(self.problem, bases, self.options.itemsize))

    def swept_for(self, choices: TaskChoices) -> TaskGroup:
        """With bases that are the best for the tasks that use them."""
        if not choices.inside:
            return self
        members = self.problem.select(choices.inside)
        bases = self.options.bases
        return self.with_bases(joint(members, bases.k, start=bases))


def choices_within(groups: Sequence[TaskGroup], nbytes: int) -> list[TaskChoices]:
    """The best choices of all tasks, with all directions of their subspaces, in so many bytes.

    One price for all groups, so that bytes go where they keep most. The bases alone must fit.
    """
    low, high = _PRICE_RANGE
    best = _choices_at(high, groups)
    for _ in range(_BISECTIONS):
        price = (low * high) ** 0.5
        choices = _choices_at(price, groups)
        if sum(choice.nbytes for choice in choices) <= nbytes:
            high, best = price, choices
        else:
            low = price
    return best


def _choices_at(price: float, groups: Sequence[TaskGroup]) -> list[TaskChoices]:
    return [group.choose(price, group.options.bases.k) for group in groups]


def weighed_loss(groups: Sequence[TaskGroup], choices: Sequence[TaskChoices]) -> float:
    """Weighed energy that all tasks of all groups lose together."""
    return sum(
        choice.weighed(group.problem.weights) for group, choice in zip(groups, choices, strict=True)
    )


def one_group(problem: UpdateProblem, itemsize: int, limit: int) -> tuple[TaskGroup, ...]:
    """All tasks of a layer in one subspace.

    Args:
        problem: of the layer, weighed as the budget weighs it.
        itemsize: s, bytes of a stored number.
        limit: most directions a side of one subspace; 0: there is no group.
    """
    all_tasks = range(len(problem.updates.ranks))
    return (TaskGroup.of(problem, all_tasks, itemsize, limit),) if limit else ()


def separate_groups(problem: UpdateProblem, itemsize: int, limit: int) -> tuple[TaskGroup, ...]:
    """One subspace for each group of tasks, and one for the tasks that are in none.

    Empty where that would be one subspace only; ``one_group`` has it. Arguments as there.
    """
    groups = find_groups(problem) if limit else []
    grouped = {task for tasks in groups for task in tasks}
    rest = sorted(set(range(len(problem.updates.ranks))) - grouped)
    parts = [*groups, rest] if rest else groups
    if len(parts) < 2:
        return ()
    return tuple(TaskGroup.of(problem.select(tasks), tasks, itemsize, limit) for tasks in parts)


GROUPINGS = one_group, separate_groups
"""Which tasks share a subspace. Every task of the layer is in one group, or there are none."""


def find_groups(problem: UpdateProblem) -> list[list[int]]:
    """Groups of tasks that lie mostly in one of them, the largest first; a task that is alone is in
    none.

    Leader clustering (Hartigan 1975, Clustering Algorithms, ch. 3): a task that nobody has claimed
    claims all whose updates lie mostly in its own left and right directions. A few leaders, drawn
    at random, find every group that holds more than a few percent of the tasks. In the textbook
    every task that nobody has claimed becomes a leader, in the order in which they come.
    """
    norms = problem.updates.norms.cpu()
    free = norms > 0
    generator = torch.Generator().manual_seed(problem.seed)
    order = torch.randperm(len(norms), generator=generator)
    # In random order, or tasks that come sorted by group would leave the last groups unasked.
    groups: list[list[int]] = []
    for leader in [int(i) for i in order if bool(free[i])][:_LEADERS]:
        if not bool(free[leader]):
            continue
        members = free & (_held_by(problem, leader) >= _HELD * norms.square())
        members[leader] = True
        if int(members.sum()) >= _LEAST_TASKS:
            groups.append([int(i) for i in members.nonzero().flatten()])
            free &= ~members
    return sorted(groups, key=len, reverse=True)[:_MOST_GROUPS]


def _held_by(problem: UpdateProblem, leader: int) -> Tensor:
    """float64 [tasks]: energy of every update in one task's own left and right directions."""
    updates = problem.updates
    one = updates.select([leader])
    left, right = seen_by(updates, one.left), seen_by(updates.flipped, one.right)
    return captured(left, problem.sigma, right, None).cpu()
