"""Low-rank updates in canonical form, dW_i = Y_i S_i Z_i^T, and their cores in a subspace.

The canonical form takes two thin Householder QRs and one small SVD an update, O((n + d) r^2)
(docs/method.md, "Method joint"). Cholesky-QR would be faster but loses orthogonality in float32
(3e-2 at condition 1e3).

In coordinates of a subspace an update is its core C_i = (L^T Y_i) S_i (Z_i^T R), batched over the
tasks. ``seen`` arguments are what one basis sees of each task's own directions: tasks x r x k, the
rows of Y_i^T L (or Z_i^T R). What is computed from cores is float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TypeAlias

import torch
from torch import Tensor

from sharespace.linalg.precision import compute_dtype

_Pair: TypeAlias = tuple[Tensor, Tensor]
_Triple: TypeAlias = tuple[Tensor, Tensor, Tensor]

_BATCH_NUMBERS = 1 << 20
"""Numbers in a batch of factors: 4 MiB in float32, times the copies that LAPACK makes."""
_CANCELLING = 1.5
"""Root of the summed squares of an update's terms over its norm, above which float64 computes:
``canonical_rounding`` has a margin of three."""
SLICE_NUMBERS, SLICE_TASKS = 1 << 17, 16
"""Numbers of the directions in a slice of tasks, and tasks at least: they stay in the processor's
cache, and what is computed on the way takes little memory, however many tasks there are."""


@dataclass(frozen=True, eq=False)
class CanonicalUpdates:
    """The updates of several tasks to one layer, side by side.

    Block i of the columns belongs to task i: dW_i = Y_i S_i Z_i^T.
    """

    left: Tensor
    """n x c, [Y_1 ... Y_T], orthonormal columns within a block; c = sum of the ranks. Column by
    column in memory (the transpose is contiguous), where ``canonicalise`` made it."""
    sigma: Tensor
    """[c], the diagonals of S_i: not negative, descending within a block."""
    right: Tensor
    """d x c, [Z_1 ... Z_T], like ``left``."""
    ranks: tuple[int, ...]
    """r_i, columns of each task's block."""

    @property
    def flipped(self) -> CanonicalUpdates:
        """The updates of the transposed weight: left and right change places."""
        return CanonicalUpdates(self.right, self.sigma, self.left, self.ranks)

    @cached_property
    def padding(self) -> tuple[Tensor, Tensor]:
        """Positions (tasks x largest rank) of each block's columns, and which of them are real."""
        width = max(self.ranks, default=0)
        ranks = torch.tensor(self.ranks, dtype=torch.long, device=self.sigma.device)
        starts = torch.cumsum(ranks, 0) - ranks
        steps = torch.arange(width, device=self.sigma.device)
        real = steps < ranks[:, None]
        return torch.where(real, starts[:, None] + steps, 0), real

    def blocks(self, rows: Tensor) -> Tensor:
        """c x m rows as tasks x largest rank x m, shorter blocks padded with zeros."""
        if len(set(self.ranks)) == 1:  # A view, without a copy.
            return rows.reshape(len(self.ranks), self.ranks[0], *rows.shape[1:])
        index, real = self.padding
        return rows[index] * real.reshape(*real.shape, *[1] * (rows.dim() - 1))

    def rows(self, blocks: Tensor) -> Tensor:
        """The inverse of ``blocks``: c x m."""
        if len(set(self.ranks)) == 1:
            return blocks.flatten(0, 1)
        return blocks[self.padding[1]]

    @cached_property
    def norms(self) -> Tensor:
        """float64 [tasks]: |dW_i| (Frobenius)."""
        return self.blocks(self.sigma.double().square()).sum(1).sqrt()

    def slices(self) -> Iterator[tuple[slice, CanonicalUpdates]]:
        """(where they are, the tasks): consecutive tasks together, as views.

        What is computed slice by slice stays in the processor's cache; see ``SLICE_NUMBERS``.
        """
        sides = self.left.shape[0] + self.right.shape[0]
        ends = [0, *accumulate(self.ranks)]
        first = 0
        while first < len(self.ranks):
            last = min(first + SLICE_TASKS, len(self.ranks))
            room = ends[first] + SLICE_NUMBERS // max(sides, 1)
            while last < len(self.ranks) and ends[last + 1] <= room:
                last += 1
            yield slice(first, last), self._between(first, last, ends)
            first = last

    def _between(self, first: int, last: int, ends: Sequence[int]) -> CanonicalUpdates:
        columns = slice(ends[first], ends[last])
        return CanonicalUpdates(
            self.left[:, columns],
            self.sigma[columns],
            self.right[:, columns],
            self.ranks[first:last],
        )

    def double(self) -> CanonicalUpdates:
        """The same updates in float64."""
        # Of the transposes, which are contiguous: the copies are then, too.
        left, right = self.left.mT.double().mT, self.right.mT.double().mT
        return CanonicalUpdates(left, self.sigma.double(), right, self.ranks)

    def select(self, tasks: Sequence[int]) -> CanonicalUpdates:
        """Only these tasks, in this order."""
        starts = [0, *accumulate(self.ranks)]
        columns = [c for t in tasks for c in range(starts[t], starts[t + 1])]
        index = torch.tensor(columns, dtype=torch.long, device=self.sigma.device)
        ranks = tuple(self.ranks[t] for t in tasks)
        return CanonicalUpdates(self.left[:, index], self.sigma[index], self.right[:, index], ranks)


def canonicalise(pairs: Sequence[_Pair]) -> CanonicalUpdates:
    """The canonical form of updates of one layer, dW_i = B_i A_i.

    Args:
        pairs: for each task (B_i, n x r_i; A_i^T, d x r_i), any floating dtype, scaling folded in.

    Returns:
        The updates in the compute dtype. Rank is kept as it comes: r_i columns, of which some have
        sigma = 0 where the update is of lower rank.
    """
    dtype = compute_dtype(*(t.dtype for pair in pairs for t in pair))
    ranks = [min(*left.shape, right.shape[0]) for left, right in pairs]
    return canonicalise_stream(pairs, ranks, dtype)


def canonicalise_stream(
    pairs: Iterable[_Pair], ranks: Sequence[int], dtype: torch.dtype
) -> CanonicalUpdates:
    """``canonicalise`` for factors that come one after the other: only a batch of them is in
    memory at once.

    Args:
        pairs: (B_i, A_i^T) of each task, at least one.
        ranks: min(n, d, r_i) of each pair.
        dtype: compute dtype.
    """
    ends = list(accumulate(ranks))
    whole: list[Tensor] = []
    # In place, batch by batch: beside the result only one batch is in memory.
    for batch in _batches(pairs):
        # As rows: column by column is how LAPACK takes the factors.
        stacks = (torch.stack([p[side].mT.to(dtype) for _, p in batch]).mT for side in (0, 1))
        blocks = _canonical(*stacks)
        whole = whole or [part.new_empty(ends[-1], *part.shape[2:]) for part in blocks]
        _put([i for i, _ in batch], blocks, whole, ends)
    left, sigma, right = whole
    return CanonicalUpdates(left.mT, sigma, right.mT, tuple(ranks))


def _put(
    tasks: Sequence[int], blocks: _Triple, whole: Sequence[Tensor], ends: Sequence[int]
) -> None:
    """Put a batch's rows in their places; of tasks that follow each other in one piece."""
    first, last, rank = tasks[0], tasks[-1], blocks[1].shape[1]
    if last - first + 1 == len(tasks):
        for target, part in zip(whole, blocks, strict=True):
            target[ends[first] - rank : ends[last]] = part.flatten(0, 1)
        return
    for i, *rows in zip(tasks, *blocks, strict=True):
        for target, part in zip(whole, rows, strict=True):
            target[ends[i] - rank : ends[i]] = part


def _batches(pairs: Iterable[_Pair]) -> Iterator[list[tuple[int, _Pair]]]:
    """Tasks of equal shape together, as many as keep the working memory small."""
    waiting: dict[tuple[int, ...], list[tuple[int, _Pair]]] = {}
    for i, (left, right) in enumerate(pairs):
        shape = (*left.shape, *right.shape)
        batch = waiting.setdefault(shape, [])
        batch.append((i, (left, right)))
        if (len(batch) + 1) * (left.numel() + right.numel()) > _BATCH_NUMBERS:
            yield waiting.pop(shape)
    yield from waiting.values()


def _canonical(left: Tensor, right: Tensor) -> _Triple:
    """Batched: tasks x n x r and tasks x d x r; the directions come as rows."""
    # Small matrices are float64 (``precision``); the large ones stay in the dtype that computes.
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right)
    u, s, vh = torch.linalg.svd(r_left.double() @ r_right.double().mT, full_matrices=False)
    rows = u.mT.to(left.dtype) @ q_left.mT, s.to(left.dtype), vh.to(left.dtype) @ q_right.mT
    if left.dtype == torch.float64:
        return rows
    for i in _cancelling(r_left, r_right, s):
        wide = _canonical(left[i].double()[None], right[i].double()[None])
        for target, exact in zip(rows, wide, strict=True):
            target[i] = exact[0].to(target.dtype)
    return rows


def _cancelling(r_left: Tensor, r_right: Tensor, sigma: Tensor) -> list[int]:
    """Tasks whose rank-one terms b_j a_j^T cancel in their sum, from the triangles of the factors.

    A QR is accurate to eps of each column, so an update to eps of its terms; where these are larger
    than their sum, rounding is more than ``canonical_rounding`` says, unless float64 computes.
    """
    columns = (t.double().square().sum(1) for t in (r_left, r_right))
    left_energies, right_energies = columns
    terms = (left_energies * right_energies).sum(1)
    return (terms > _CANCELLING**2 * sigma.square().sum(1)).nonzero()[:, 0].tolist()


def product_energy(left: Tensor, right: Tensor) -> float:
    """|left right^T|^2 through the triangular factors: a product of Grams would cancel.

    Args:
        left: n x r.
        right: d x r.
    """
    r_left, r_right = (torch.linalg.qr(factor.double(), mode="r")[1] for factor in (left, right))
    return float((r_left @ r_right.mT).square().sum())


def compacted(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """left right^T with as many columns as its numerical rank in float32, which its numbers are of.

    What holds NaN or infinity is given back as it is, for somebody else to refuse.

    Args:
        left: float64, n x r.
        right: float64, d x r.
    """
    if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
        return left, right
    (q_left, r_left), (q_right, r_right) = torch.linalg.qr(left), torch.linalg.qr(right)
    u, s, vh = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
    # What is below the rounding of float32 is noise.
    count = int((s > torch.finfo(torch.float32).eps * s[:1]).sum())
    return q_left @ (u[:, :count] * s[:count]), q_right @ vh[:count].mT


def weights(norms: Tensor) -> Tensor:
    """w_i = 1 / |dW_i|, and 0 for an update that is zero (it has nothing to lose)."""
    return torch.where(norms > 0, 1 / norms.clamp_min(torch.finfo(norms.dtype).tiny), 0.0)


@dataclass(frozen=True, eq=False)
class CoreSvd:
    """Singular value decompositions of the cores, C_i = U S V^T, float64."""

    left: Tensor
    """tasks x k_left x q, U."""
    values: Tensor
    """tasks x q, the diagonals of S."""
    right: Tensor
    """tasks x k_right x q, V."""

    def factors(self, p: int | None = None) -> tuple[Tensor, Tensor]:
        """E = U S^1/2 and F = V S^1/2 of the p leading directions, tasks x k x p.

        A core that is zero gives E = 0 and F orthonormal: with both 0 neither would have a
        gradient, and later training would stay there.
        """
        q = self.values.shape[1] if p is None else min(p, self.values.shape[1])
        root = self.values[:, :q].sqrt()
        zero = (self.values == 0).all(dim=1)[:, None, None]
        scaled = self.right[..., :q] * root[:, None]
        return self.left[..., :q] * root[:, None], torch.where(zero, self.right[..., :q], scaled)

    def tail(self, p: int | None) -> Tensor:
        """[tasks]: energy beyond the p leading directions, sum_{j > p} sigma_j(C_i)^2."""
        return self.values[:, p:].square().sum(1) if p is not None else self.values.new_zeros(())


def seen_by(updates: CanonicalUpdates, left: Tensor) -> Tensor:
    """Y_i^T L: tasks x r x k, zero rows where a task's rank is smaller than the largest."""
    # The wide side last: a quarter faster than the product the other way round.
    seen = left.to(updates.left.dtype).mT @ updates.left
    return updates.blocks(seen.mT.contiguous())


def core_svd(seen_left: Tensor, sigma: Tensor, seen_right: Tensor) -> CoreSvd:
    """SVDs of all cores through r x r matrices, never k x k.

    Args:
        seen_left: tasks x r x k_left, Y_i^T L.
        sigma: tasks x r, the diagonals of S_i.
        seen_right: tasks x r x k_right, Z_i^T R.
    """
    # Through the triangles: an SVD of k x k would cost (k / r)^3 as much.
    q_left, r_left = torch.linalg.qr(seen_left.double().mT)
    q_right, r_right = torch.linalg.qr(seen_right.double().mT)
    u, s, vh = torch.linalg.svd((r_left * sigma.double()[:, None]) @ r_right.mT, False)
    return CoreSvd(q_left @ u, s, q_right @ vh.mT)


def core_factors(
    seen_left: Tensor, sigma: Tensor, seen_right: Tensor, p: int | None = None
) -> tuple[Tensor, Tensor]:
    """E and F of every core, as ``CoreSvd.factors``; faster where nothing is truncated.

    From one QR and one eigendecomposition: with seen_right^T = Q T and M = seen_left^T S T^T, the
    eigenvectors V of M^T M give E F^T = (M V)(Q V)^T, exact however small a singular value is. Only
    how orthogonal the faintest columns of E are to each other suffers.

    Args:
        seen_left: tasks x r x k_left, Y_i^T L.
        sigma: tasks x r, the diagonals of S_i.
        seen_right: tasks x r x k_right, Z_i^T R.
        p: pseudo-rank; None: the rank of the task.
    """
    rank = seen_left.shape[1]
    if rank > min(seen_left.shape[2], seen_right.shape[2]) or (p is not None and p < rank):
        return core_svd(seen_left, sigma, seen_right).factors(p)
    q, r = torch.linalg.qr(seen_right.double().mT)
    mixed = (r * sigma.double()[:, None]) @ seen_left.double()
    vectors = torch.linalg.eigh(mixed @ mixed.mT)[1].flip(2)
    left, right = mixed.mT @ vectors, q @ vectors
    values = torch.linalg.vector_norm(left, dim=1)
    values = torch.where(values > torch.finfo(values.dtype).tiny, values, 0.0)
    root = values.sqrt()[:, None]
    zero = (values == 0).all(dim=1)[:, None, None]
    inverse = torch.where(root > 0, root, 1.0).reciprocal() * (root > 0)
    return left * inverse, torch.where(zero, right, right * root)


def cores(seen_left: Tensor, sigma: Tensor, seen_right: Tensor) -> Tensor:
    """C_i = L^T dW_i R themselves: float64, tasks x k_left x k_right."""
    return (seen_left.double().mT * sigma.double()[:, None]) @ seen_right.double()


def captured(seen_left: Tensor, sigma: Tensor, seen_right: Tensor, p: int | None) -> Tensor:
    """float64 [tasks]: energy of each task's core, of its p leading directions.

    Without truncation from r x r Gram matrices, |C_i|^2 = trace(S Y^T L L^T Y S Z^T R R^T Z), which
    is faster than any decomposition and is no difference of squares.
    """
    ranks = min(seen_left.shape[1], seen_left.shape[2], seen_right.shape[2])
    if p is not None and p < ranks:
        return core_svd(seen_left, sigma, seen_right).values[:, :p].square().sum(1)
    left = (seen_left @ seen_left.mT).double() * sigma.double()[:, None]
    right = (seen_right @ seen_right.mT).double() * sigma.double()[:, None]
    return (left * right.mT).sum((1, 2)).clamp_min(0)
