"""What a task may take of two bases: how many leading directions, at which rank, or none at all.

With many tasks the coefficients outgrow the bases, so under a byte budget every task chooses for
itself: a private update, or a core of rank p in the leading (a, b) directions. All choose at one
price of a byte (Lagrange multiplier; Shoham and Gersho 1988, IEEE Trans. ASSP 36(9)), which makes
their choices independent: the lost energy plus the price of the bytes is least for each alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg.precision import canonical_rounding
from sharespace.linalg.problem import BasisPair, UpdateProblem
from sharespace.linalg.updates import seen_by

_GROWTH = 1.4
"""Of the dimensions that are tried."""
_SKEW = 6
"""Pairs of dimensions that differ by more than this factor are not tried."""


@dataclass(frozen=True, eq=False)
class TaskChoices:
    """How each task of a module is stored."""

    k: tuple[int, int]
    """Directions of the common bases; (0, 0): there are none."""
    left: Tensor
    """int64 [tasks]: leading left directions that a task's core uses; 0: its update is private."""
    right: Tensor
    """int64 [tasks]: likewise on the right."""
    rank: Tensor
    """int64 [tasks]: of the core, or columns of the private update."""
    lost: Tensor
    """float64 [tasks]: energy that is not kept (not weighed)."""
    nbytes: int
    """Of bases, cores and private updates."""

    @property
    def inside(self) -> list[int]:
        """The tasks with a core in the common bases."""
        return [int(i) for i in self.left.nonzero().flatten()]

    def weighed(self, weights: Tensor) -> float:
        """Weighed energy that is not kept."""
        return float((weights.square().cpu() * self.lost).sum())


@dataclass(frozen=True, eq=False)
class TaskOptions:
    """What each task loses in the leading directions of two bases, at every rank."""

    bases: BasisPair
    steps: tuple[Tensor, Tensor]
    """int64 [A] and [B]: numbers of left and of right directions that can be chosen."""
    lost: Tensor
    """float64 [A, B, tasks, q + 1]: energy lost in the leading (a, b) at rank 0, 1, ... q."""
    own_lost: Tensor
    """float64 [tasks, r + 1]: energy that an own SVD of 0, 1, ... r columns loses."""
    itemsize: int
    """Bytes of a stored number."""

    def choose(
        self, price: float, weights: Tensor, k: tuple[int, int] | None = None
    ) -> TaskChoices:
        """What every task chooses at a price of a byte, and with it the best number of directions.

        Args:
            price: weighed energy that a byte must be worth.
            weights: float64 [tasks].
            k: (left, right) directions, both among the steps, or (0, 0); None: as many as pay.
        """
        square = weights.square().cpu()
        own = _Best.of(square[:, None] * self.own_lost, price * self._private_bytes())
        shape = self._cheapest(price, square, own.cost) if k is None else self._position(k)
        return self._allocation(price, square, own, shape)

    def _cheapest(self, price: float, square: Tensor, own: Tensor) -> tuple[int, int] | None:
        """Positions of the steps at which lost energy and price of the bytes are least together."""
        if not self.lost.numel():
            return None
        cost = square[:, None] * self.lost + price * self._core_bytes()[:, :, None]
        each = cost.amin(3).cummin(0).values.cummin(1).values
        total = torch.minimum(each, own).sum(2) + price * self._basis_bytes()
        best = int(total.argmin())
        if float(total.flatten()[best]) >= float(own.sum()):
            return None
        return best // total.shape[1], best % total.shape[1]

    def _position(self, k: tuple[int, int]) -> tuple[int, int] | None:
        if k == (0, 0):
            return None
        left, right = ((s == x).nonzero() for s, x in zip(self.steps, k, strict=True))
        return int(left[0]), int(right[0])

    def _allocation(
        self, price: float, square: Tensor, own: _Best, shape: tuple[int, int] | None
    ) -> TaskChoices:
        """Private and shared choices side by side; ``shape``: positions of (k_left, k_right)."""
        private_bytes = self._private_bytes()[own.index]
        nothing = torch.zeros_like(own.index)
        lost = self.own_lost.gather(1, own.index[:, None])[:, 0]
        if shape is None:
            return TaskChoices((0, 0), nothing, nothing, own.index, lost, int(private_bytes.sum()))
        a, b = shape[0] + 1, shape[1] + 1
        ranks = self.lost.shape[3]
        flat = self.lost[:a, :b].permute(2, 0, 1, 3).flatten(1)
        sizes = self._core_bytes()[:a, :b].flatten()
        best = _Best.of(square[:, None] * flat, price * sizes)
        shared = best.cost < own.cost
        step, rank = best.index // ranks, best.index % ranks
        shared &= rank > 0
        basis = int(self._basis_bytes()[shape])
        nbytes = torch.where(shared, sizes[best.index], private_bytes)
        return TaskChoices(
            k=(int(self.steps[0][shape[0]]), int(self.steps[1][shape[1]])),
            left=torch.where(shared, self.steps[0][step // b], nothing),
            right=torch.where(shared, self.steps[1][step % b], nothing),
            rank=torch.where(shared, rank, own.index),
            lost=torch.where(shared, flat.gather(1, best.index[:, None])[:, 0], lost),
            nbytes=int(nbytes.sum()) + basis,
        )

    @property
    def sides(self) -> tuple[int, int]:
        """(n, d)."""
        return self.bases.left.shape[0], self.bases.right.shape[0]

    def _private_bytes(self) -> Tensor:
        columns = torch.arange(self.own_lost.shape[1], dtype=torch.float64)
        return self.itemsize * sum(self.sides) * columns

    def _basis_bytes(self) -> Tensor:
        n, d = self.sides
        left, right = (s.double() for s in self.steps)
        return self.itemsize * (n * left[:, None] + d * right)

    def _core_bytes(self) -> Tensor:
        """float64 [A, B, q + 1]: E and F, or the core where the rank is the whole of a side."""
        a, b = self.steps[0][:, None, None], self.steps[1][:, None]
        rank = torch.arange(self.lost.shape[3])
        numbers = torch.where(rank < torch.minimum(a, b), (a + b) * rank, a * b)
        return self.itemsize * numbers.double()


@dataclass(frozen=True, eq=False)
class _Best:
    """The cheapest option of each task."""

    cost: Tensor
    index: Tensor

    @classmethod
    def of(cls, lost: Tensor, paid: Tensor) -> _Best:
        """The first of the cheapest, so that no byte is bought for nothing."""
        found = (lost + paid).min(1)
        return cls(found.values, found.indices)


def task_options(problem: UpdateProblem, bases: BasisPair, itemsize: int) -> TaskOptions:
    """The menu of a module.

    Args:
        problem: its tasks; ``p`` limits the rank of the cores.
        bases: orthonormal, in the order in which directions are given out.
        itemsize: bytes of a stored number.
    """
    steps = _ladder(bases.k[0]), _ladder(bases.k[1])
    lost = _lost(problem, bases, steps) if all(bases.k) else torch.zeros(0, 0, 0, 1)
    return TaskOptions(bases, steps, lost, own_svd_lost(problem), itemsize)


def own_svd_lost(problem: UpdateProblem) -> Tensor:
    """float64 [tasks, r + 1]: energy beyond the leading 0, 1, ... r singular directions."""
    squares = problem.sigma.double().square().cpu()
    tails = squares.flip(1).cumsum(1).flip(1)
    return torch.cat([tails, tails.new_zeros(len(tails), 1)], dim=1)


def _ladder(most: int) -> Tensor:
    """1, 2, 3, 4, 6, 9 ... and ``most`` itself."""
    found, step = {most}, 1.0
    while step < most:
        found.add(int(step))
        step = max(step + 1, step * _GROWTH)
    return torch.tensor(sorted(k for k in found if 0 < k <= most), dtype=torch.long)


def _lost(problem: UpdateProblem, bases: BasisPair, steps: tuple[Tensor, Tensor]) -> Tensor:
    """By sums of what is left out, not by differences, so that a faint last direction counts."""
    left = _Side.of(seen_by(problem.updates, bases.left), steps[0])
    right = _Side.of(seen_by(problem.updates.flipped, bases.right), steps[1])
    sigma = problem.sigma.double()
    energy = sigma.square().sum(1)
    floor = canonical_rounding(problem.updates.left.dtype) * energy
    most = min(sigma.shape[1], problem.p or sigma.shape[1])
    shape = (len(steps[0]), len(steps[1]), len(sigma), most + 1)
    result = torch.full(shape, torch.inf, dtype=torch.float64)
    for i, a in enumerate(steps[0].tolist()):
        for j, b in enumerate(steps[1].tolist()):
            if max(a, b) > _SKEW * min(a, b):
                continue
            outside = _outside(left, right, i, j, sigma, floor)
            core = torch.linalg.svdvals(left.roots[i] * sigma[:, None] @ right.roots[j].mT)
            tails = core.square().flip(1).cumsum(1).flip(1)
            tails = torch.cat([tails, tails.new_zeros(len(tails), 1)], dim=1)[:, : most + 1]
            ranks = min(a, b, tails.shape[1] - 1)
            whole = outside[:, None] + tails[:, : ranks + 1]
            # Beneath its own rounding a task is whole.
            whole = torch.where(whole > floor[:, None] ** 2 / energy[:, None], whole, 0.0)
            beyond = torch.arange(ranks + 1) > torch.tensor(problem.updates.ranks)[:, None]
            result[i, j, :, : ranks + 1] = whole.cpu().masked_fill(beyond, torch.inf)
            result[i, j, :, 0] = energy.cpu()
    return result


@dataclass(frozen=True, eq=False)
class _Side:
    """What the leading directions of one side see of every task."""

    roots: list[Tensor]
    """Per step tasks x min(r, a) x r: R of a QR, R^T R the Gram of what they see."""
    inside: list[Tensor]
    """Per step tasks x r x r: that Gram."""
    outside: list[Tensor]
    """Per step tasks x r x r: the Gram of what the directions after the step see."""
    hidden: Tensor
    """tasks x r x r: the Gram of what no direction of the basis sees."""

    @classmethod
    def of(cls, seen: Tensor, steps: Tensor) -> _Side:
        """Args:
        seen: tasks x r x k.
        steps: numbers of leading directions.
        """
        seen, ends = seen.double(), steps.tolist()
        roots = [torch.linalg.qr(seen[..., :k].mT, mode="r")[1] for k in ends]
        after = seen.new_zeros(len(seen), seen.shape[1], seen.shape[1])
        outside: list[Tensor] = []
        for begin, end in reversed(list(zip(ends, [*ends[1:], seen.shape[2]], strict=True))):
            part = seen[..., begin:end]
            after = after + part @ part.mT
            outside.insert(0, after)
        inside = [seen[..., :k] @ seen[..., :k].mT for k in ends]
        hidden = torch.eye(seen.shape[1]).to(seen) - seen @ seen.mT
        return cls(roots, inside, outside, hidden)


def _outside(left: _Side, right: _Side, i: int, j: int, sigma: Tensor, floor: Tensor) -> Tensor:
    """float64 [tasks]: |dW|^2 - |core|^2 = |(I - P_a) dW|^2 + |P_a dW (I - P_b)|^2.

    What the whole bases do not see is a difference of squares: below its rounding they see all.
    """
    square = sigma.square()
    outer = sigma[:, :, None] * sigma[:, None]
    first = (torch.diagonal(left.outside[i], dim1=1, dim2=2) * square).sum(1)
    second = (left.inside[i] * right.outside[j] * outer).sum((1, 2)).clamp_min(0)
    unseen = (torch.diagonal(left.hidden, dim1=1, dim2=2) * square).sum(1)
    unseen = unseen + (left.inside[i] * right.hidden * outer).sum((1, 2))
    return first + second + torch.where(unseen > floor, unseen, 0.0)
