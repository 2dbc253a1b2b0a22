"""The options of tasks in two bases, and what they choose at a price of a byte.

With many tasks the coefficients outgrow the bases, so under a byte budget every task chooses for
itself: its own SVD, or a core of rank q in the leading (a, b) directions. All choose at one price
of a byte (a Lagrange multiplier; Shoham and Gersho 1988, IEEE Trans. ASSP 36(9)), which makes their
choices independent: the lost energy plus the price of the bytes is least for each alone
(docs/method.md, "Rate allocation").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sharespace.linalg.precision import canonical_rounding
from sharespace.linalg.problem import BasisPair, UpdateProblem
from sharespace.linalg.updates import seen_by

_GROWTH = 1.4
"""From one rung of the ladder of dimensions to the next."""
_SKEW = 6
"""Pairs of dimensions that differ by more than this factor are not on offer."""


@dataclass(frozen=True, eq=False)
class TaskChoices:
    """What each task of a group chose, and what that costs and loses."""

    k: tuple[int, int]
    """(k_left, k_right), directions of the common bases; (0, 0): there are none."""
    left: Tensor
    """int64 [tasks]: a, leading left directions that a task's core uses; 0: it has its own SVD."""
    right: Tensor
    """int64 [tasks]: b, likewise on the right."""
    rank: Tensor
    """int64 [tasks]: q, the rank of the core, or the columns of the task's own SVD."""
    lost: Tensor
    """float64 [tasks]: energy that is not kept (not weighed)."""
    nbytes: int
    """Of bases, cores and own SVDs."""

    @property
    def inside(self) -> list[int]:
        """The tasks with a core in the common bases."""
        return [int(i) for i in self.left.nonzero().flatten()]

    def weighed(self, weights: Tensor) -> float:
        """Weighed energy that is not kept, given w_i."""
        return float((weights.square().cpu() * self.lost).sum())


@dataclass(frozen=True, eq=False)
class TaskOptions:
    """What each task loses in the leading directions of two bases at every rank, and alone."""

    bases: BasisPair
    ladders: tuple[Tensor, Tensor]
    """int64 [A] and [B]: the numbers a of left and b of right directions that are on offer."""
    lost: Tensor
    """float64 [A, B, tasks, q + 1]: energy lost in the leading (a, b) at rank 0, 1, ... q."""
    own_lost: Tensor
    """float64 [tasks, r + 1]: energy that an own SVD of 0, 1, ... r columns loses."""
    itemsize: int
    """s, bytes of a stored number."""

    def choose(
        self, price: float, weights: Tensor, k: tuple[int, int] | None = None
    ) -> TaskChoices:
        """What every task chooses at a price of a byte, and with it the best number of directions.

        Args:
            price: lambda, weighed energy that a byte must be worth.
            weights: float64 [tasks], w_i.
            k: (k_left, k_right), both on the ladders, or (0, 0); None: as many as pay.
        """
        # Options are on the CPU wherever the layer is computed: they are many and small.
        square = weights.square().cpu()
        own = _Cheapest.of(square[:, None] * self.own_lost, price * self._own_bytes)
        rungs = self._best_rungs(price, square, own.cost) if k is None else self._rungs(k)
        return self._choices(price, square, own, rungs)

    def _best_rungs(self, price: float, square: Tensor, own: Tensor) -> tuple[int, int] | None:
        """Rungs of the ladders at which lost energy and price of the bytes are least together; None
        where the own SVDs alone are as cheap."""
        if not self.lost.numel():
            return None
        cost = square[:, None] * self.lost + price * self._core_bytes[:, :, None]
        # Tasks may use fewer directions than there are: the least over all rungs up to each.
        least = cost.amin(3).cummin(0).values.cummin(1).values
        total = torch.minimum(least, own).sum(2) + price * self._basis_bytes
        best = int(total.argmin())
        # Not >, so that bases are stored only where they gain something.
        if float(total.flatten()[best]) >= float(own.sum()):
            return None
        return best // total.shape[1], best % total.shape[1]

    def _rungs(self, k: tuple[int, int]) -> tuple[int, int] | None:
        if k == (0, 0):
            return None
        left, right = (
            (ladder == directions).nonzero()
            for ladder, directions in zip(self.ladders, k, strict=True)
        )
        return int(left[0]), int(right[0])

    def _choices(
        self, price: float, square: Tensor, own: _Cheapest, rungs: tuple[int, int] | None
    ) -> TaskChoices:
        """The cheaper of own SVD and core for each task, with bases up to the rungs."""
        own_bytes = self._own_bytes[own.index]
        none = torch.zeros_like(own.index)
        own_lost = self.own_lost.gather(1, own.index[:, None])[:, 0]
        if rungs is None:
            return TaskChoices((0, 0), none, none, own.index, own_lost, int(own_bytes.sum()))
        a, b = rungs[0] + 1, rungs[1] + 1
        ranks = self.lost.shape[3]
        flat = self.lost[:a, :b].permute(2, 0, 1, 3).flatten(1)
        sizes = self._core_bytes[:a, :b].flatten()
        core = _Cheapest.of(square[:, None] * flat, price * sizes)
        rung, rank = core.index // ranks, core.index % ranks
        # A core of rank 0 keeps nothing; that is an own SVD without columns.
        shared = (core.cost < own.cost) & (rank > 0)
        basis_bytes = int(self._basis_bytes[rungs])
        nbytes = torch.where(shared, sizes[core.index], own_bytes)
        return TaskChoices(
            k=(int(self.ladders[0][rungs[0]]), int(self.ladders[1][rungs[1]])),
            left=torch.where(shared, self.ladders[0][rung // b], none),
            right=torch.where(shared, self.ladders[1][rung % b], none),
            rank=torch.where(shared, rank, own.index),
            lost=torch.where(shared, flat.gather(1, core.index[:, None])[:, 0], own_lost),
            nbytes=int(nbytes.sum()) + basis_bytes,
        )

    @property
    def sides(self) -> tuple[int, int]:
        """(n, d)."""
        return self.bases.left.shape[0], self.bases.right.shape[0]

    @cached_property
    def _own_bytes(self) -> Tensor:
        """float64 [r + 1]: s (n + d) q."""
        columns = torch.arange(self.own_lost.shape[1], dtype=torch.float64)
        return self.itemsize * sum(self.sides) * columns

    @cached_property
    def _basis_bytes(self) -> Tensor:
        """float64 [A, B]: s (n k_left + d k_right)."""
        n, d = self.sides
        left, right = (ladder.double() for ladder in self.ladders)
        return self.itemsize * (n * left[:, None] + d * right)

    @cached_property
    def _core_bytes(self) -> Tensor:
        """float64 [A, B, q + 1]: s (a + b) q for E and F, or s a b for the core itself, which is
        stored where the rank is the whole of a side."""
        a, b = self.ladders[0][:, None, None], self.ladders[1][:, None]
        rank = torch.arange(self.lost.shape[3])
        numbers = torch.where(rank < torch.minimum(a, b), (a + b) * rank, a * b)
        return self.itemsize * numbers.double()


@dataclass(frozen=True, eq=False)
class _Cheapest:
    """The cheapest option of each task: w_i^2 lost + lambda bytes, and which one it is."""

    cost: Tensor
    index: Tensor

    @classmethod
    def of(cls, lost: Tensor, paid: Tensor) -> _Cheapest:
        """The first of the cheapest, so that no byte is bought for nothing."""
        least = (lost + paid).min(1)
        return cls(least.values, least.indices)


def task_options(problem: UpdateProblem, bases: BasisPair, itemsize: int) -> TaskOptions:
    """The options of a layer's tasks, or of a group of them, in two bases.

    Args:
        problem: the tasks; ``p`` limits the rank of the cores.
        bases: L and R, orthonormal, in the order in which directions are given out.
        itemsize: s, bytes of a stored number.
    """
    ladders = _ladder(bases.k[0]), _ladder(bases.k[1])
    lost = _core_lost(problem, bases, ladders) if all(bases.k) else torch.zeros(0, 0, 0, 1)
    return TaskOptions(bases, ladders, lost, _own_svd_lost(problem), itemsize)


def _own_svd_lost(problem: UpdateProblem) -> Tensor:
    """float64 [tasks, r + 1]: energy beyond the leading 0, 1, ... r singular directions."""
    return _tails(problem.sigma.double().cpu())


def _ladder(most: int) -> Tensor:
    """1, 2, 3, 4, 5, 8, 11, ... and ``most`` itself.

    Each number is the one before times 1.4, or one more where that is larger; the rungs are these
    numbers rounded down.
    """
    rungs, rung = {most}, 1.0
    while rung < most:
        rungs.add(int(rung))
        rung = max(rung + 1, rung * _GROWTH)
    return torch.tensor(sorted(k for k in rungs if 0 < k <= most), dtype=torch.long)


def _core_lost(problem: UpdateProblem, bases: BasisPair, ladders: tuple[Tensor, Tensor]) -> Tensor:
    """float64 [A, B, tasks, q + 1]: |dW_i|^2 - sum_{j <= q} sigma_j(C_i^{a,b})^2.

    By sums of what is left out, not by differences: energies that are kept differ between own SVDs
    and common bases by rounding, which would decide on a last direction as faint as 3e-4.
    """
    left = _SeenSide.of(seen_by(problem.updates, bases.left), ladders[0])
    right = _SeenSide.of(seen_by(problem.updates.flipped, bases.right), ladders[1])
    sigma = problem.sigma.double()
    energy = sigma.square().sum(1)
    floor = canonical_rounding(problem.updates.left.dtype) * energy
    # Relative to the energy, the square of what the canonical form may be wrong by.
    whole = (floor**2 / energy)[:, None]
    own_ranks = torch.tensor(problem.updates.ranks)[:, None]
    most = min(sigma.shape[1], problem.p or sigma.shape[1])
    shape = (len(ladders[0]), len(ladders[1]), len(sigma), most + 1)
    # Infinite is what is not on offer: too skew a pair, and a rank that core or task do not have.
    result = torch.full(shape, torch.inf, dtype=torch.float64)
    for i, a in enumerate(ladders[0].tolist()):
        outside = _Outside.of(left, right, i, sigma, floor)
        for j, b in enumerate(ladders[1].tolist()):
            if max(a, b) > _SKEW * min(a, b):
                continue
            core = torch.linalg.svdvals(left.roots[i] * sigma[:, None] @ right.roots[j].mT)
            ranks = min(a, b, most)
            lost = outside.at(j)[:, None] + _tails(core)[:, : ranks + 1]
            # Beneath its own rounding a task is whole.
            lost = torch.where(lost > whole, lost, 0.0)
            beyond = torch.arange(ranks + 1) > own_ranks
            result[i, j, :, : ranks + 1] = lost.cpu().masked_fill(beyond, torch.inf)
            result[i, j, :, 0] = energy.cpu()
    return result


def _tails(values: Tensor) -> Tensor:
    """float64 [tasks, q + 1]: energy beyond the leading 0, 1, ... q singular values."""
    tails = values.square().flip(1).cumsum(1).flip(1)
    return torch.cat([tails, tails.new_zeros(len(tails), 1)], dim=1)


@dataclass(frozen=True, eq=False)
class _SeenSide:
    """What the leading directions of one side see of every task, for each rung of its ladder."""

    roots: list[Tensor]
    """Per rung tasks x min(r, a) x r: R of a QR, R^T R the Gram of what they see."""
    inside: list[Tensor]
    """Per rung tasks x r x r: that Gram."""
    outside: list[Tensor]
    """Per rung tasks x r x r: the Gram of what the directions after the rung see."""
    hidden: Tensor
    """tasks x r x r: the Gram of what no direction of the basis sees."""

    @classmethod
    def of(cls, seen: Tensor, ladder: Tensor) -> _SeenSide:
        """Decompose what a basis sees.

        Args:
            seen: tasks x r x k, Y_i^T L or Z_i^T R.
            ladder: numbers of leading directions.
        """
        seen, ends = seen.double(), ladder.tolist()
        roots = [torch.linalg.qr(seen[..., :k].mT, mode="r")[1] for k in ends]
        after = seen.new_zeros(len(seen), seen.shape[1], seen.shape[1])
        outside: list[Tensor] = []
        for first, end in reversed(list(zip(ends, [*ends[1:], seen.shape[2]], strict=True))):
            part = seen[..., first:end]
            after = after + part @ part.mT
            outside.insert(0, after)
        inside = [seen[..., :k] @ seen[..., :k].mT for k in ends]
        hidden = torch.eye(seen.shape[1]).to(seen) - seen @ seen.mT
        return cls(roots, inside, outside, hidden)


@dataclass(frozen=True, eq=False)
class _Outside:
    """|dW|^2 - |core|^2 = |(I - P_a) dW|^2 + |P_a dW (I - P_b)|^2 of all tasks, for one a."""

    left: Tensor
    """float64 [tasks]: |(I - P_a) dW|^2 within the left basis."""
    seen: Tensor
    """float64, tasks x r x r: Gram of what the leading a directions see."""
    outer: Tensor
    """float64, tasks x r x r: sigma sigma^T."""
    right: list[Tensor]
    """``_SeenSide.outside`` of the right side."""
    unseen: Tensor
    """float64 [tasks]: energy that the whole bases do not see."""

    @classmethod
    def of(
        cls, left: _SeenSide, right: _SeenSide, rung: int, sigma: Tensor, floor: Tensor
    ) -> _Outside:
        """For the rung of the left ladder."""
        square, outer = sigma.square(), sigma[:, :, None] * sigma[:, None]
        seen = left.inside[rung]
        within = (torch.diagonal(left.outside[rung], dim1=1, dim2=2) * square).sum(1)
        unseen = (torch.diagonal(left.hidden, dim1=1, dim2=2) * square).sum(1)
        unseen = unseen + (seen * right.hidden * outer).sum((1, 2))
        # Only this part is a difference of squares: below its rounding the bases see all.
        return cls(within, seen, outer, right.outside, torch.where(unseen > floor, unseen, 0.0))

    def at(self, rung: int) -> Tensor:
        """float64 [tasks], for a rung of the right ladder."""
        right = (self.seen * self.right[rung] * self.outer).sum((1, 2)).clamp_min(0)
        return self.left + right + self.unseen
