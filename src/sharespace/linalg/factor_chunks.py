"""The factors of one layer's updates, read in chunks into one buffer, and products with them.

A pass sees every task once: dW_i = B_i A_i. The Gram matrix of a side, sum_i w_i^2 dW_i dW_i^T, is
never formed: dW_i dW_i^T x = B_i (A_i A_i^T) (B_i^T x), with r x r matrices in the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sharespace.linalg.updates import canonicalise, weights

UNBALANCED = 64.0
"""Factors are replaced by a balanced split of their update where (|B| |A| / |dW|)^2, by which their
Gram matrices enlarge rounding, is above so many times their rank (well-kept factors: the rank)."""


@dataclass(frozen=True, eq=False)
class FactorReader:
    """The factors of one layer's updates, read when they are needed: dW_i = B_i A_i."""

    n: int
    """Rows of B_i."""
    d: int
    """Columns of A_i."""
    ranks: tuple[int, ...]
    """r_i of each task: rows of A_i, columns of B_i."""
    dtype: torch.dtype
    """To compute in."""
    device: torch.device
    read: Callable[[int, Tensor, Tensor], None]
    """(task, left, right): write B_i^T into left (r_i x n) and A_i into right (r_i x d)."""
    chunk_bytes: int
    """What the factors of a chunk may take in the dtype to compute in; at least one task is."""
    _buffers: list[Tensor] = field(default_factory=list)

    def count(self, rank: int) -> int:
        """How many tasks of a rank make a chunk."""
        return max(self.chunk_bytes // (rank * (self.n + self.d) * self.dtype.itemsize), 1)

    def views(self, tasks: int, rank: int) -> tuple[Tensor, Tensor]:
        """tasks x rank x n and tasks x rank x d of the one buffer that all chunks use: fresh memory
        for each would cost more than to fill it."""
        if not self._buffers or len(self._buffers[0]) < tasks * rank:
            self._buffers[:] = [
                torch.empty(tasks * rank, side, dtype=self.dtype, device=self.device)
                for side in (self.n, self.d)
            ]
        left, right = (b[: tasks * rank].reshape(tasks, rank, -1) for b in self._buffers)
        return left, right


@dataclass(frozen=True, eq=False)
class FactorChunk:
    """The factors of some tasks; they are overwritten when the next chunk is read."""

    tasks: list[int]
    ranks: tuple[int, ...]
    left: Tensor
    """m x r x n, B_i^T, rows beyond a task's rank are zero."""
    right: Tensor
    """m x r x d, A_i."""
    norms: Tensor
    """float64 [m]: |dW_i|."""


@dataclass(frozen=True, eq=False)
class MeasuredChunk(FactorChunk):
    """A chunk with its Gram matrices."""

    left_gram: Tensor
    """float64, m x r x r: B_i^T B_i."""
    right_gram: Tensor
    """float64, m x r x r: A_i A_i^T."""
    balanced: list[int]
    """Tasks whose factors are another split of their update than the one that was read."""


@dataclass(frozen=True, eq=False)
class MeasuredNorms:
    """What one pass measures, so that later ones need no Gram matrices."""

    values: Tensor
    """float64 [tasks], on the CPU: |dW_i|."""
    balanced: set[int]
    """Tasks whose factors have to be split anew each time that they are read."""

    @classmethod
    def none(cls, tasks: int) -> MeasuredNorms:
        """Before the first chunk."""
        return cls(torch.zeros(tasks, dtype=torch.float64), set())

    def put(self, chunk: MeasuredChunk) -> None:
        """Remember the norms of a chunk."""
        self.values[chunk.tasks] = chunk.norms.cpu()
        self.balanced.update(chunk.balanced)


def chunks(reader: FactorReader, tasks: Iterable[int] | None = None) -> Iterator[MeasuredChunk]:
    """Some tasks or all, each once, those of like rank together.

    Raises:
        FloatingPointError: factors hold NaN, infinity, or numbers too large to compute with.
    """
    for some in _groups(reader, range(len(reader.ranks)) if tasks is None else tasks):
        yield read_chunk(reader, some)


def chunks_again(reader: FactorReader, norms: MeasuredNorms) -> Iterator[FactorChunk]:
    """All tasks once more, after a pass that has measured them."""
    for tasks in _groups(reader, range(len(reader.ranks))):
        ranks, left, right = _read(reader, tasks)
        for i, task in enumerate(tasks):
            if task in norms.balanced:
                _balance(left[i], right[i])
        yield FactorChunk(tasks, ranks, left, right, norms.values[tasks].to(reader.device))


def _groups(reader: FactorReader, tasks: Iterable[int]) -> Iterator[list[int]]:
    """The tasks of each chunk. By rank, so that a chunk, padded to its largest, holds few zeros."""
    order = sorted(tasks, key=lambda t: reader.ranks[t])
    first = 0
    while first < len(order):
        end = _end(reader, order, first)
        yield order[first:end]
        first = end


def _end(reader: FactorReader, order: Sequence[int], first: int) -> int:
    """Where a chunk ends: at the room that there is, or where the rank has doubled."""
    smallest, end = reader.ranks[order[first]], first + 1
    while end < len(order):
        rank = reader.ranks[order[end]]
        if rank > 2 * smallest or end - first + 1 > reader.count(rank):
            break
        end += 1
    return end


def sample_tasks(reader: FactorReader, generator: torch.Generator, wanted: int) -> list[int]:
    """Tasks drawn at random in the order in which they come: as many as have the wanted number of
    columns, and as make a chunk at most."""
    drawn = torch.randperm(len(reader.ranks), generator=generator).tolist()
    widest, columns = 0, 0
    for count, task in enumerate(drawn, 1):
        widest = max(widest, reader.ranks[task])
        if columns >= wanted or count > reader.count(widest):
            return sorted(drawn[: max(count - 1, 1)])
        columns += reader.ranks[task]
    return sorted(drawn)


def read_chunk(reader: FactorReader, tasks: Sequence[int]) -> MeasuredChunk:
    """Some tasks' factors and their Gram matrices.

    Raises:
        FloatingPointError: they hold NaN, infinity, or numbers too large to compute with.
    """
    ranks, left, right = _read(reader, tasks)
    left_gram, right_gram = _gram(left), _gram(right)
    # |B A|^2 = trace((B^T B) (A A^T)).
    energies = (left_gram * right_gram).sum((1, 2))
    scales = left_gram.diagonal(dim1=1, dim2=2).sum(1) * right_gram.diagonal(dim1=1, dim2=2).sum(1)
    if not bool(torch.isfinite(scales).all()):
        raise FloatingPointError("a factor holds NaN, infinity, or numbers too large")
    uneven = (scales > UNBALANCED * max(ranks) * energies).nonzero()[:, 0].tolist()
    for i in uneven:
        _balance(left[i], right[i])
        left_gram[i], right_gram[i] = _gram(left[i]), _gram(right[i])
        energies[i] = (left_gram[i] * right_gram[i]).sum()
    norms = energies.clamp_min(0).sqrt()
    balanced = [tasks[i] for i in uneven]
    return MeasuredChunk(list(tasks), ranks, left, right, norms, left_gram, right_gram, balanced)


def _read(reader: FactorReader, tasks: Sequence[int]) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """Ranks and factors of a chunk, as they are."""
    ranks = tuple(reader.ranks[t] for t in tasks)
    left, right = reader.views(len(tasks), max(ranks))
    for i, (task, rank) in enumerate(zip(tasks, ranks, strict=True)):
        reader.read(task, left[i, :rank], right[i, :rank])
        if rank < left.shape[1]:
            # The buffer still holds the chunk before.
            left[i, rank:].zero_()
            right[i, rank:].zero_()
    return ranks, left, right


def _gram(factor: Tensor) -> Tensor:
    # The product in the dtype of the factors: ``UNBALANCED`` bounds what its rounding can do.
    return (factor @ factor.mT).double()


def _balance(left: Tensor, right: Tensor) -> None:
    """Split an update evenly between its factors, in place."""
    update = canonicalise([(left.mT.double(), right.mT.double())])
    root = update.sigma.sqrt()[:, None]
    count = len(root)
    left.zero_()[:count] = (update.left.mT * root).to(left.dtype)
    right.zero_()[:count] = (update.right.mT * root).to(right.dtype)


def entered_weights(norms: Tensor, entry_norms: Tensor | None) -> Tensor:
    """float64 [tasks], w_i: inverse norms of entry where they are known, else of the updates."""
    if entry_norms is None:
        return weights(norms)
    entered = entry_norms.to(norms)
    return weights(torch.where(entered.isnan(), norms, entered))


def chunk_weights(chunk: FactorChunk, entry_norms: Tensor | None) -> Tensor:
    """float64 [tasks of the chunk], w_i."""
    return entered_weights(chunk.norms, None if entry_norms is None else entry_norms[chunk.tasks])


def sides(chunk: MeasuredChunk) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(one factor's rows, the other one's Gram) of the left and of the right side."""
    return (chunk.left, chunk.right_gram), (chunk.right, chunk.left_gram)


def factor_seen(factor: Tensor, columns: Tensor) -> Tensor:
    """m x r x l: B_i^T columns, for all rows in one product."""
    # The wide side last: a tenth faster than the product the other way round.
    rows = (columns.mT @ factor.flatten(0, 1).mT).mT.contiguous()
    return rows.reshape(*factor.shape[:2], -1)


def add_power(
    factor: Tensor, inner: Tensor, task_weights: Tensor, seen: Tensor, into: Tensor
) -> None:
    """Add sum_i w_i^2 B_i inner_i (B_i^T columns), transposed, to ``into`` (l x n).

    Args:
        factor: m x r x n, B_i^T.
        inner: float64, m x r x r: A_i A_i^T, or what a frame sees of it.
        task_weights: float64 [m], w_i.
        seen: m x r x l, what the columns see of each task: B_i^T columns.
        into: the sum so far, transposed, as ``zero_sum`` makes it.
    """
    gains = (task_weights.square()[:, None, None] * inner).to(factor.dtype)
    into.addmm_((gains @ seen).flatten(0, 1).mT, factor.flatten(0, 1))


def zero_sum(columns: Tensor) -> Tensor:
    """Zeros like the columns (n x l), column by column in memory, as ``add_power`` takes them."""
    return columns.new_zeros(columns.shape[1], columns.shape[0]).mT


def cholesky_root(gram: Tensor, dtype: torch.dtype) -> Tensor:
    """float64, m x r x r: C with C C^T = gram but for rounding of the factors' dtype.

    The diagonal is lifted by that rounding, because a factor's rank need not be full. Only which
    directions are taken depends on it.
    """
    trace = gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(gram.dtype).tiny)
    identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    lifted = gram / trace[:, None, None] + 4 * torch.finfo(dtype).eps * identity
    result: Tensor = torch.linalg.cholesky(lifted) * trace.sqrt()[:, None, None]
    return result
