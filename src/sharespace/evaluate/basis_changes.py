"""How the subspace settles as tasks are merged: angles between successive bases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from torch import Tensor

from sharespace.evaluate.similarity import principal_angles
from sharespace.subspace.state import ShareModel


@dataclass(frozen=True)
class BasisChange:
    """One basis before and after a step."""

    k: tuple[int, int]
    """Dimension before, after."""
    angles: tuple[float, ...]
    """The min(k) principal angles, ascending, in radians. All 0: the smaller one lies in the larger
    (a merge that only added directions)."""

    @property
    def mean_angle(self) -> float:
        """Radians."""
        return fmean(self.angles)

    @property
    def max_angle(self) -> float:
        """Radians."""
        return self.angles[-1]

    @property
    def overlap(self) -> float:
        """Mean cos^2: 1 where one lies in the other."""
        return fmean(math.cos(a) ** 2 for a in self.angles)


@dataclass(frozen=True)
class StepChange:
    """All bases before and after a step."""

    left: Mapping[str, BasisChange]
    """Module -> its left basis; modules with a basis both before and after."""
    right: Mapping[str, BasisChange]

    @property
    def left_angles(self) -> tuple[float, ...]:
        """Of the left bases of all modules, ascending, in radians; empty without any."""
        return tuple(sorted(a for change in self.left.values() for a in change.angles))

    @property
    def right_angles(self) -> tuple[float, ...]:
        """Of the right bases, likewise."""
        return tuple(sorted(a for change in self.right.values() for a in change.angles))

    @property
    def mean_angle(self) -> float | None:
        """Mean over modules and sides of their mean angle, in radians; None without any."""
        return fmean(c.mean_angle for c in self._all) if self._all else None

    @property
    def max_angle(self) -> float | None:
        """The largest of all, in radians; None without any."""
        return max(c.max_angle for c in self._all) if self._all else None

    @property
    def overlap(self) -> float | None:
        """Mean over modules and sides of their overlap; None without any."""
        return fmean(c.overlap for c in self._all) if self._all else None

    @property
    def grown(self) -> int:
        """Directions added, over modules and sides."""
        return sum(c.k[1] - c.k[0] for c in self._all)

    @property
    def _all(self) -> tuple[BasisChange, ...]:
        return (*self.left.values(), *self.right.values())


def settling(models: Sequence[ShareModel]) -> tuple[StepChange, ...]:
    """What each step did to the bases.

    Args:
        models: the Share model after every step, in order.

    Returns:
        One less than there are models. A module without a basis before or after a step (new, or
        kept privately) is left out of that step.

    Raises:
        MismatchError: a module has another shape in the next model.
    """
    return tuple(step_change(a, b) for a, b in pairwise(models))


def step_change(before: ShareModel, after: ShareModel) -> StepChange:
    """The change of all bases from one model to the next; see ``settling``."""
    left, right = {}, {}
    for module in before.layers:
        if module not in after.layers:
            continue
        old, new = before.layers[module], after.layers[module]
        if min(*old.k, *new.k) > 0:
            left[module] = _change(old.left_basis, new.left_basis)
            right[module] = _change(old.right_basis, new.right_basis)
    return StepChange(left, right)


def _change(old: Tensor, new: Tensor) -> BasisChange:
    angles = tuple(float(a) for a in principal_angles(old, new))
    return BasisChange((old.shape[1], new.shape[1]), angles)
