"""What ``joint`` solves: updates with weights, and the bases that it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sharespace.linalg.canonical import Updates
from sharespace.linalg.cores import captured, seen_by
from sharespace.linalg.precision import tolerance


@dataclass(frozen=True, eq=False)
class Bases:
    """A left and a right basis, orthonormal columns."""

    left: Tensor
    """n x k_left."""
    right: Tensor
    """d x k_right."""

    @property
    def k(self) -> tuple[int, int]:
        return self.left.shape[1], self.right.shape[1]

    @property
    def flipped(self) -> Bases:
        """Of the transposed weight."""
        return Bases(self.right, self.left)

    def first(self, k: tuple[int, int]) -> Bases:
        """The leading k_left and k_right directions."""
        return Bases(self.left[:, : k[0]], self.right[:, : k[1]])


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be approximated."""

    updates: Updates
    weights: Tensor
    """float64 [tasks]; energies below are sums of (weight * norm)^2."""
    p: int | None = None
    """Pseudo-rank; None: no limit beyond each task's rank."""
    seed: int = 0
    """Of the randomised range finder."""

    @property
    def sigma(self) -> Tensor:
        """tasks x r."""
        return self.updates.blocks(self.updates.sigma)

    @property
    def dropped(self) -> float:
        """Energy that may be left out as rounding."""
        return tolerance(self.updates.left.dtype) ** 2

    @property
    def total(self) -> float:
        """Weighed energy of all tasks."""
        return float((self.weights * self.updates.norms).square().sum())

    @property
    def flipped(self) -> Problem:
        """The same for the transposed weight."""
        return replace(self, updates=self.updates.flipped)

    def select(self, tasks: Sequence[int]) -> Problem:
        """Some of the tasks, in that order, with the weights they have here."""
        chosen = list(tasks)
        return replace(self, updates=self.updates.select(chosen), weights=self.weights[chosen])

    def energy(self, bases: Bases) -> float:
        """Weighed energy that the bases capture, after truncation of the cores to rank p."""
        energies = self.weights.new_zeros(())
        for tasks, part in self.updates.slices():
            left, right = seen_by(part, bases.left), seen_by(part.flipped, bases.right)
            found = captured(left, part.blocks(part.sigma), right, self.p)
            energies += (self.weights[tasks].square() * found).sum()
        return float(energies)

    def seen_energy(self, left: Tensor, right: Tensor) -> float:
        """``energy`` of bases from what they see of each task (tasks x r x k)."""
        energies = captured(left, self.sigma, right, self.p)
        return float((self.weights.square() * energies).sum())
