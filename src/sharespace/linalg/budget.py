"""Spend a byte budget over modules: joint subspaces or own SVDs, whichever keeps more.

Each module offers two curves of (bytes, lost energy): its joint subspace at k = 1, 2, ... and the
own SVDs of its tasks. Greedy along the lower hull of both, by energy per byte, is within one
direction of the best split. Energies weigh a task by 1 / |dW_i over all modules|.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharespace.linalg.allocate import each_core, energy_table
from sharespace.linalg.canonical import Updates
from sharespace.linalg.cores import core_svd, seen_by
from sharespace.linalg.joint import Bases, Problem, hosvd
from sharespace.linalg.precision import canonical_rounding


@dataclass(frozen=True)
class Point:
    """One way to store a module."""

    nbytes: int
    lost: float
    """Weighed energy of the module that is not kept."""
    k: int = 0
    """Dimension of the joint subspace; 0 where the tasks are stored on their own."""
    columns: int = 0
    """Columns of all own SVDs together; 0 where there is a joint subspace."""


@dataclass(frozen=True)
class Sizes:
    """What a direction and its coefficients cost in bytes."""

    n: int
    d: int
    ranks: tuple[int, ...]
    """Rank of each task after the pseudo-rank's limit."""
    itemsize: int

    def coefficients(self, k_left: int, k_right: int) -> int:
        """Bytes of all tasks' coefficients: E and F, or the core where p is the whole of a side."""
        per_task = (
            (k_left + k_right) * r if r < min(k_left, k_right) else k_left * k_right
            for r in self.ranks
        )
        return self.itemsize * sum(per_task)

    def joint(self, k_left: int, k_right: int) -> int:
        """Bytes of bases and coefficients."""
        basis = self.itemsize * (self.n * k_left + self.d * k_right)
        return basis + self.coefficients(k_left, k_right)

    def joint_table(self, k_left: int, k_right: int) -> Tensor:
        """int64 [k_left, k_right]: ``joint`` of (a, b) at [a - 1, b - 1]."""
        a = torch.arange(1, k_left + 1)[:, None]
        b = torch.arange(1, k_right + 1)[None]
        total = self.n * a + self.d * b
        for rank in set(self.ranks):
            numbers = torch.where(torch.minimum(a, b) > rank, (a + b) * rank, a * b)
            total = total + self.ranks.count(rank) * numbers
        return self.itemsize * total

    def own(self, columns: int) -> int:
        """Bytes of own SVDs with so many columns in all."""
        return self.itemsize * (self.n + self.d) * columns


def sizes(updates: Updates, p: int | None, itemsize: int) -> Sizes:
    """The sizes of a module."""
    ranks = tuple(r if p is None else min(r, p) for r in updates.ranks)
    return Sizes(updates.left.shape[0], updates.right.shape[0], ranks, itemsize)


@dataclass(frozen=True, eq=False)
class Profile:
    """All that the split of a budget needs to know of a module; tasks x k numbers."""

    sizes: Sizes
    own: Tensor
    """float64 [tasks, r]: energy of each singular direction, descending, zero-padded."""
    shared_lost: Tensor
    """float64 [tasks, k]: energy that the leading 1, 2, ... k joint directions lose."""

    @property
    def energies(self) -> Tensor:
        """float64 [tasks]: |dW_i|^2."""
        return self.own.sum(1)

    def points(self, weights: Tensor, budget: int) -> list[Point]:
        """Both curves of the module from nothing at all upwards, as far as the budget reaches.

        Args:
            weights: float64 [tasks], 1 / |dW_i over all modules|.
        """
        square = weights.square()[:, None]
        shared = (square * self.shared_lost).sum(0).tolist()
        # Summed from the faintest: what is left after the c strongest columns.
        left = (square * self.own).flatten().sort().values.cumsum(0).flip(0).tolist()
        joint = [Point(self.sizes.joint(k, k), e, k=k) for k, e in enumerate(shared, 1)]
        own = [Point(self.sizes.own(c), e, columns=c) for c, e in enumerate([*left, 0.0])]
        return [p for p in own + joint if p.nbytes <= budget]

    def own_ranks(self, weights: Tensor, columns: int) -> list[int]:
        """How many singular directions each task keeps when all keep ``columns`` together."""
        strength = (weights.square()[:, None] * self.own).flatten()
        chosen = torch.zeros_like(strength)
        chosen[strength.argsort(descending=True, stable=True)[:columns]] = 1
        return [int(x) for x in chosen.reshape(self.own.shape).sum(1)]


def own_profile(updates: Updates, itemsize: int) -> Profile:
    """Profile of a module with own SVDs only."""
    own = updates.blocks(updates.sigma).double().square().cpu()
    return Profile(sizes(updates, None, itemsize), own, own[:, :0])


def profile(problem: Problem, itemsize: int, budget: int | None = None) -> Profile:
    """Profile of a module; no joint direction that alone would cost more than the budget."""
    size = sizes(problem.updates, problem.p, itemsize)
    limit = min(size.n, size.d)
    if budget is not None:
        limit = min(limit, budget // (itemsize * (size.n + size.d)))
    own = own_profile(problem.updates, itemsize)
    lost = _nested_lost(problem, hosvd(problem, (limit, limit)), own.energies)
    return replace(own, sizes=size, shared_lost=lost)


def _nested_lost(problem: Problem, bases: Bases, energies: Tensor) -> Tensor:
    """float64 [tasks, k]: energy that is lost with the leading 1, 2, ... k directions a side."""
    found = [_outside(core.square().cpu()) for core in each_core(problem, bases)]
    kept, outside = torch.stack([k for k, _ in found]), torch.stack([o for _, o in found])
    hidden = energies - kept
    # A difference of squares: below its rounding the bases hold all of the task.
    floor = canonical_rounding(problem.updates.left.dtype) * energies
    lost = outside + torch.where(hidden > floor, hidden, 0.0)[:, None]
    if problem.p is not None and problem.p < max(problem.updates.ranks):
        lost = lost + _rank_tails(problem, bases, problem.p)
    return lost


def _outside(squares: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of a core's squares, and of those outside its leading k x k block for k = 1, 2, ...

    By sums of what is outside, not by differences, so that a faint last direction still counts.
    """
    a, b = squares.shape
    shell = torch.maximum(torch.arange(a)[:, None], torch.arange(b)[None])
    shells = torch.zeros(max(a, b), dtype=squares.dtype)
    shells.index_add_(0, shell.flatten(), squares.flatten())
    outside = shells.flip(0).cumsum(0).flip(0)
    return squares.sum(), torch.cat([outside[1:], outside.new_zeros(1)])[: min(a, b)]


def _rank_tails(problem: Problem, bases: Bases, p: int) -> Tensor:
    """float64 [tasks, k]: energy beyond rank p of each core's leading k x k block."""
    left = seen_by(problem.updates, bases.left)
    right = seen_by(problem.updates.flipped, bases.right)
    tails = torch.zeros(len(left), min(bases.k), dtype=torch.float64)
    for k in range(p + 1, tails.shape[1] + 1):
        tails[:, k - 1] = core_svd(left[..., :k], problem.sigma, right[..., :k]).tail(p).cpu()
    return tails


def refine(problem: Problem, k: int, itemsize: int) -> tuple[Bases, tuple[int, int]]:
    """The best (k_left, k_right) at the bytes of (k, k): sides need not be equal where n != d."""
    size = sizes(problem.updates, problem.p, itemsize)
    wide = min(2 * k, min(problem.updates.left.shape[0], problem.updates.right.shape[0]))
    bases = hosvd(problem, (max(wide, k), max(wide, k)))
    table = energy_table(problem, bases, problem.weights)
    allowed = size.joint_table(table.shape[0], table.shape[1]) <= size.joint(k, k)
    best = int(torch.where(allowed, table, -1.0).argmax())
    return bases, (best // table.shape[1] + 1, best % table.shape[1] + 1)


def spend(offers: Sequence[Sequence[Point]], budget: int) -> list[Point]:
    """One point for each module, within the budget, that lose as little energy as found.

    Never more than own SVDs alone would lose at the same bytes.
    """
    mixed = _greedy([_hull(points) for points in offers], offers, budget)
    only_own = [[p for p in points if not p.k] for points in offers]
    own = _greedy([_hull(points) for points in only_own], only_own, budget)
    return min(mixed, own, key=lambda points: sum(p.lost for p in points))


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
