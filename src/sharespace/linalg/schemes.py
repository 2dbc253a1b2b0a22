"""Ways to share a module among its tasks: one subspace, or one for each family.

The subspaces of families are not orthogonal to each other: each is the best for its own tasks,
whose coefficients are as few as if there were no others (subspace clustering: Vidal 2011, "Subspace
Clustering", IEEE Signal Processing Magazine 28(2)). The bases are many then, and worth it where the
tasks are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sharespace.linalg.families import families
from sharespace.linalg.joint import Bases, Problem, hosvd
from sharespace.linalg.menu import Allocation, Menu, menu


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


_PRICE_RANGE = 1e-30, 1e6
"""Weighed energies are at most 1 a task, and nothing below the rounding of float64 counts."""
_BISECTIONS = 48


def _all_at(price: float, scheme: Sequence[Part]) -> list[Allocation]:
    return [part.at(price, part.card.bases.k) for part in scheme]


def weighed(scheme: Sequence[Part], found: Sequence[Allocation]) -> float:
    """Weighed energy that all tasks lose together."""
    return sum(
        chosen.weighed(part.problem.weights) for part, chosen in zip(scheme, found, strict=True)
    )
