"""Factors read in chunks into one buffer, with their r x r Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sharespace.linalg.updates import canonicalise

UNBALANCED = 64.0
"""Factors are replaced by a balanced split of their update where (|B| |A| / |dW|)^2, by which their
Gram matrices enlarge rounding, is above so many times their rank (well-kept factors: the rank)."""


@dataclass(frozen=True, eq=False)
class FactorReader:
    """The factors of one module's updates, read when they are needed: dW_i = B_i A_i."""

    n: int
    d: int
    ranks: tuple[int, ...]
    """Rows of A_i, columns of B_i."""
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
    """The factors of some tasks; gone when the next chunk is read."""

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
        """Remember those of a chunk."""
        self.values[chunk.tasks] = chunk.norms.cpu()
        self.balanced.update(chunk.balanced)


def chunks(rows: FactorReader, tasks: Iterable[int] | None = None) -> Iterator[MeasuredChunk]:
    """Some tasks or all, each once, those of like rank together."""
    for some in _groups(rows, range(len(rows.ranks)) if tasks is None else tasks):
        yield read_chunk(rows, some)


def chunks_again(rows: FactorReader, norms: MeasuredNorms) -> Iterator[FactorChunk]:
    """All tasks once more."""
    for tasks in _groups(rows, range(len(rows.ranks))):
        ranks, left, right = _read(rows, tasks)
        for i, task in enumerate(tasks):
            if task in norms.balanced:
                _balance(left[i], right[i])
        yield FactorChunk(tasks, ranks, left, right, norms.values[tasks].to(rows.device))


def _groups(rows: FactorReader, tasks: Iterable[int]) -> Iterator[list[int]]:
    order = sorted(tasks, key=lambda t: rows.ranks[t])
    at = 0
    while at < len(order):
        end = _end(rows, order, at)
        yield order[at:end]
        at = end


def _end(rows: FactorReader, order: Sequence[int], start: int) -> int:
    """Where a chunk ends: at the room that there is, or where the rank has doubled."""
    first, end = rows.ranks[order[start]], start + 1
    while end < len(order):
        rank = rows.ranks[order[end]]
        if rank > 2 * first or end - start + 1 > rows.count(rank):
            break
        end += 1
    return end


def sample(rows: FactorReader, generator: torch.Generator, wanted: int) -> list[int]:
    """Tasks drawn at random in the order in which they come: as many as have the wanted number of
    columns, and as make a chunk at most."""
    drawn = torch.randperm(len(rows.ranks), generator=generator).tolist()
    widest, columns = 0, 0
    for count, task in enumerate(drawn, 1):
        widest = max(widest, rows.ranks[task])
        if columns >= wanted or count > rows.count(widest):
            return sorted(drawn[: max(count - 1, 1)])
        columns += rows.ranks[task]
    return sorted(drawn)


def read_chunk(rows: FactorReader, tasks: Sequence[int]) -> MeasuredChunk:
    """Some tasks' factors.

    Raises:
        FloatingPointError: they hold NaN, infinity, or numbers too large to compute with.
    """
    ranks, left, right = _read(rows, tasks)
    left_gram, right_gram = _gram(left), _gram(right)
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


def _read(rows: FactorReader, tasks: Sequence[int]) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """Ranks and factors of a chunk, as they are."""
    ranks = tuple(rows.ranks[t] for t in tasks)
    left, right = rows.views(len(tasks), max(ranks))
    for i, (task, rank) in enumerate(zip(tasks, ranks, strict=True)):
        rows.read(task, left[i, :rank], right[i, :rank])
        if rank < left.shape[1]:
            left[i, rank:].zero_()
            right[i, rank:].zero_()
    return ranks, left, right


def _gram(factor: Tensor) -> Tensor:
    return (factor @ factor.mT).double()


def _balance(left: Tensor, right: Tensor) -> None:
    """Split an update evenly between its factors, in place."""
    found = canonicalise([(left.mT.double(), right.mT.double())])
    root = found.sigma.sqrt()[:, None]
    count = len(root)
    left.zero_()[:count] = (found.left.mT * root).to(left.dtype)
    right.zero_()[:count] = (found.right.mT * root).to(right.dtype)
