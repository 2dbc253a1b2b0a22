"""The second pass: every task in coordinates of two frames, and what lies outside of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from sharespace.linalg.canonical import Updates, canonicalise
from sharespace.linalg.own_directions import cholesky_root
from sharespace.linalg.power import add_power, chunk_weights, seen, zero_sum
from sharespace.linalg.row_chunks import Chunk, Norms, Rows, chunks_again

SMALL_LOSS = 1e-3
"""Relative energy below which what lies outside a frame is measured and not taken as a difference
of energies, whose rounding is 1e-6 of the norm in float32."""


@dataclass(frozen=True, eq=False)
class Compressed:
    """All tasks in coordinates of two frames, and what the frames do not hold."""

    left: Tensor
    """n x l, orthonormal columns, in the compute dtype."""
    right: Tensor
    """d x l'."""
    core: Updates
    """left^T dW_i right in canonical form (compute dtype)."""
    norms: Tensor
    """float64 [tasks]: |dW_i|."""
    outside: Tensor
    """float64 [tasks]: |dW_i|^2 - |core_i|^2."""
    pushed: tuple[Tensor, Tensor]
    """n x l and d x l': sum_i w_i^2 dW_i right right^T dW_i^T left, and the same of the other side;
    empty where it was not asked for."""


def coordinates(
    rows: Rows,
    left: Tensor,
    right: Tensor,
    norms: Norms,
    entry_norms: Tensor | None = None,
    *,
    power: bool,
) -> Compressed:
    """One pass over all tasks.

    Args:
        left: n x l, orthonormal columns.
        right: d x l'.
        norms: what an earlier pass measured.
        entry_norms: as in ``streamed.Search``.
        power: find ``pushed``, too.
    """
    outside = torch.zeros(len(rows.ranks), dtype=torch.float64, device=rows.device)
    cores = _Cores([min(r, left.shape[1], right.shape[1]) for r in rows.ranks], left, right)
    pushed = (
        zero_sum(left[:, : None if power else 0]),
        zero_sum(right[:, : None if power else 0]),
    )
    for chunk in chunks_again(rows, norms):
        found = seen(chunk.left, left), seen(chunk.right, right)
        inner = [(s @ s.mT).double() for s in found]
        outside[chunk.tasks] = _outside(chunk, (left, right), found, inner)
        cores.put(chunk, found)
        if power:
            weighing = chunk_weights(chunk, entry_norms)
            add_power(chunk.left, inner[1], weighing, found[0], pushed[0].mT)
            add_power(chunk.right, inner[0], weighing, found[1], pushed[1].mT)
    whole = norms.values.to(rows.device)
    return Compressed(left, right, cores.updates, whole, outside, pushed)


class _Cores:
    """The cores in canonical form, put in their places chunk by chunk."""

    def __init__(self, ranks: Sequence[int], left: Tensor, right: Tensor) -> None:
        self._ranks = ranks
        self._ends = list(accumulate(ranks))
        count = self._ends[-1]
        self._parts = (
            left.new_empty(count, left.shape[1]),
            left.new_empty(count),
            right.new_empty(count, right.shape[1]),
        )

    def put(self, chunk: Chunk, found: tuple[Tensor, Tensor]) -> None:
        """Put what the frames see of a chunk's factors (m x r x l and m x r x l') in its place."""
        small = _canonical(chunk, found)
        places = self._places(chunk.tasks)
        for target, part in zip(
            self._parts, (small.left.mT, small.sigma, small.right.mT), strict=True
        ):
            target[places] = part.to(target.dtype)

    def _places(self, tasks: Sequence[int]) -> slice | Tensor:
        """Where the directions of tasks are; of consecutive ones a slice, which is faster."""
        first, last = tasks[0], tasks[-1]
        if list(tasks) == list(range(first, last + 1)):
            return slice(self._ends[first] - self._ranks[first], self._ends[last])
        places = [i for t in tasks for i in range(self._ends[t] - self._ranks[t], self._ends[t])]
        return torch.tensor(places, device=self._parts[1].device)

    @property
    def updates(self) -> Updates:
        left, sigma, right = self._parts
        return Updates(left.mT, sigma, right.mT, tuple(self._ranks))


def _outside(
    chunk: Chunk,
    frames: tuple[Tensor, Tensor],
    found: tuple[Tensor, Tensor],
    inner: Sequence[Tensor],
) -> Tensor:
    """float64 [tasks]: energy outside the two frames."""
    whole = chunk.norms.square()
    result = whole - (inner[0] * inner[1]).sum((1, 2))
    close = (result < SMALL_LOSS * whole).nonzero()[:, 0]
    if len(close):
        result[close] = _measured(chunk, frames, found, close)
    return result.clamp_min(0)


def _measured(
    chunk: Chunk,
    frames: tuple[Tensor, Tensor],
    found: tuple[Tensor, Tensor],
    tasks: Tensor,
) -> Tensor:
    """The same for some tasks, from the hidden parts themselves.

    Through triangular factors: a Gram matrix would see the hidden rows of a factor also where the
    other factor cancels them (an update of lower rank than its factors).
    """
    factors = chunk.left[tasks], chunk.right[tasks]
    held = found[0][tasks], found[1][tasks]
    hidden = [f - h @ frame.mT for f, h, frame in zip(factors, held, frames, strict=True)]
    return _energy(factors[1], hidden[0]) + _energy(held[0], hidden[1])


def _energy(one: Tensor, other: Tensor) -> Tensor:
    """float64 [tasks]: |one^T other|^2 of m x r x n and m x r x d rows."""
    triangle = torch.linalg.qr(one.mT, mode="r")[1]
    energies: Tensor = (triangle @ other).double().square().sum((1, 2))
    return energies


def _canonical(chunk: Chunk, found: tuple[Tensor, Tensor]) -> Updates:
    """Canonical form of a chunk's cores, float64."""
    left, right = (part.double() for part in found)
    rank = left.shape[1]
    whole = set(chunk.ranks) == {rank} and rank <= min(left.shape[2], right.shape[2])
    if whole and found[0].dtype == torch.float32:
        return _by_gram(left, right)
    pairs = [(a[:r].mT, b[:r].mT) for a, b, r in zip(left, right, chunk.ranks, strict=True)]
    return canonicalise(pairs)


def _by_gram(left: Tensor, right: Tensor) -> Updates:
    """The same by eigendecompositions, a third of the time: good to 1e-8 of a task's norm, which
    float32 factors do not tell from nothing.

    With F F^T = L L^T, core core^T = E^T L L^T E: eigenvectors v of L^T (E E^T) L give the left
    directions E^T L v / sigma and the right ones F^T (E E^T) L v / sigma^2.
    """
    tasks, rank, _ = left.shape
    gram = left @ left.mT
    mix = cholesky_root(right @ right.mT, left.dtype)
    energies, vectors = torch.linalg.eigh(mix.mT @ gram @ mix)
    energies, mix = energies.flip(1).clamp_min(0), mix @ vectors.flip(2)
    # What is below rounding of the largest has no direction: it is left out.
    real = energies > 1e-14 * energies[:, :1]
    sigma = torch.where(real, energies, 0.0).sqrt()
    inverse = torch.where(real, energies, 1.0).rsqrt() * real
    to_left = (mix * inverse[:, None]).mT @ left
    to_right = (gram @ mix * inverse.square()[:, None]).mT @ right
    return Updates(
        to_left.flatten(0, 1).mT, sigma.flatten(), to_right.flatten(0, 1).mT, (rank,) * tasks
    )
