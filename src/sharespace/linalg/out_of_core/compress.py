"""Updates that do not fit in memory, in coordinates of two frames: two passes over their factors.

The first pass (``range_search``) finds frames a little wider than the k that is wanted, the second
(``coordinates``) expresses every task in them. All that follows (HOSVD, sweeps, truncation) works
on the small cores: r_i x l numbers a task and side, the only thing that grows with the tasks.

Where the spectra are flat, as among independently trained adapters, two passes find less than the
in-memory method. Then the second pass also takes a step of subspace iteration, and a third one (a
fourth at most) looks again in frames that hold the best bases so far and what that step found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from sharespace.linalg.joint import joint
from sharespace.linalg.out_of_core.factor_chunks import (
    FactorChunk,
    FactorReader,
    MeasuredNorms,
    add_power,
    cholesky_root,
    chunk_weights,
    chunks_again,
    entered_weights,
    factor_seen,
    zero_sum,
)
from sharespace.linalg.out_of_core.range_search import range_search
from sharespace.linalg.problem import BasisPair, UpdateProblem
from sharespace.linalg.truncated import (
    orthonormal_float64,
    rayleigh_ritz,
    sketch_width,
    unit_columns,
)
from sharespace.linalg.updates import CanonicalUpdates, canonicalise

REFINEMENTS = 2
"""At most so many passes after the second."""
WORTH_A_PASS = 0.01
"""A refinement is followed by another while it lowers the weighed squared error by this part."""
SMALL_LOSS = 1e-3
"""Relative energy below which what lies outside a frame is measured and not taken as a difference
of energies, whose rounding is 1e-6 of the norm in float32."""


@dataclass(frozen=True, eq=False)
class FrameSearch:
    """What frames are looked for."""

    k: tuple[int, int]
    """(k_left, k_right) that are wanted in the end; the frames are wider."""
    p: int | None = None
    """Pseudo-rank, as in ``UpdateProblem``."""
    seed: int = 0
    """Of the sample and the test matrices."""
    entry_norms: Tensor | None = None
    """float64 [tasks], norms whose inverses are the weights w_i, NaN where the update's own is
    meant; None: its own for all."""
    known: BasisPair | None = None
    """Bases that the frames have to contain."""


@dataclass(frozen=True, eq=False)
class CompressedTasks:
    """All tasks in coordinates of two frames, and what the frames do not hold."""

    left: Tensor
    """n x l, orthonormal columns, in the compute dtype."""
    right: Tensor
    """d x l'."""
    core: CanonicalUpdates
    """left^T dW_i right in canonical form (compute dtype)."""
    norms: Tensor
    """float64 [tasks]: |dW_i|."""
    outside: Tensor
    """float64 [tasks]: |dW_i|^2 - |core_i|^2."""
    pushed: tuple[Tensor, Tensor]
    """n x l and d x l': sum_i w_i^2 dW_i right right^T dW_i^T left, and the same of the other side;
    empty where it was not asked for."""


def compress(reader: FactorReader, search: FrameSearch) -> CompressedTasks:
    """Every task in frames that hold, as nearly as a few passes can find, the best k directions.

    The frames hold the strongest k singular directions of single tasks too where these might be
    better, so that ``joint`` on the cores is never worse than own SVDs with k columns in all.

    Args:
        reader: the factors of the tasks, dW_i = B_i A_i.
        search: what frames are looked for.

    Raises:
        FloatingPointError: factors that hold NaN, infinity, or numbers too large to compute with.
    """
    first = range_search(reader, search.k, search.entry_norms, search.seed)
    own = first.needs_own(search.k)
    left, right = _frames(first.with_task_directions(reader) if own else first.columns, search)
    norms = first.norms
    del first  # Its two matrices are as large as the frames.
    best = coordinates(reader, left, right, norms, search.entry_norms, power=own)
    if not own:
        # Two passes are enough for related tasks, whose frames surely hold more than own SVDs.
        return best
    bases, lost = _solved(best, search)
    for passes_after in reversed(range(REFINEMENTS)):
        left, right = _frames(_next_columns(best, bases, search), search)
        best = coordinates(reader, left, right, norms, search.entry_norms, power=passes_after > 0)
        lost_before = lost
        bases, lost = _solved(best, search)
        if lost_before - lost <= WORTH_A_PASS * lost_before:
            break
    return best


def problem_of(compressed: CompressedTasks, search: FrameSearch) -> UpdateProblem:
    """The problem on the cores: what is outside of the frames is lost whatever the bases."""
    # Weights of the whole updates: those of the cores would value a task by what the frames hold.
    task_weights = entered_weights(compressed.norms, search.entry_norms)
    return UpdateProblem(compressed.core, task_weights, search.p, search.seed)


def _solved(compressed: CompressedTasks, search: FrameSearch) -> tuple[BasisPair, float]:
    """Bases in the frames' coordinates, and the weighed squared error with them."""
    problem = problem_of(compressed, search)
    bases = joint(problem, search.k)
    outside = compressed.outside.to(problem.weights)
    lost_outside = float((problem.weights.square() * outside).sum())
    return bases, lost_outside + problem.total - problem.energy(bases)


def _next_columns(
    compressed: CompressedTasks, bases: BasisPair, search: FrameSearch
) -> tuple[Tensor, Tensor]:
    """The best bases so far, and the leading directions of one more step."""
    results = []
    sides = (
        (compressed.left, compressed.pushed[0], bases.left, search.k[0]),
        (compressed.right, compressed.pushed[1], bases.right, search.k[1]),
    )
    for frame, pushed, basis, k in sides:
        turn = rayleigh_ritz(frame, pushed)[1].to(pushed)
        step = pushed @ turn[:, : sketch_width(k, *frame.shape)]
        results.append(torch.cat([frame @ basis.to(frame), unit_columns(step)], dim=1))
    return results[0], results[1]


def _frames(columns: tuple[Tensor, Tensor], search: FrameSearch) -> tuple[Tensor, Tensor]:
    """Orthonormal frames of the columns, which begin with the known bases."""
    if search.known is not None:
        known = search.known.left, search.known.right
        left, right = (
            torch.cat([basis.to(side), side], dim=1)
            for basis, side in zip(known, columns, strict=True)
        )
        columns = left, right
    return orthonormal_float64(columns[0]), orthonormal_float64(columns[1])


def coordinates(
    reader: FactorReader,
    left: Tensor,
    right: Tensor,
    norms: MeasuredNorms,
    entry_norms: Tensor | None = None,
    *,
    power: bool,
) -> CompressedTasks:
    """One pass over all tasks, which expresses each in two frames.

    Args:
        reader: the factors of the tasks, dW_i = B_i A_i.
        left: n x l, orthonormal columns.
        right: d x l'.
        norms: what an earlier pass measured.
        entry_norms: as in ``FrameSearch``.
        power: find ``CompressedTasks.pushed``, too.
    """
    outside = torch.zeros(len(reader.ranks), dtype=torch.float64, device=reader.device)
    cores = _Cores([min(r, left.shape[1], right.shape[1]) for r in reader.ranks], left, right)
    pushed = (
        zero_sum(left[:, : None if power else 0]),
        zero_sum(right[:, : None if power else 0]),
    )
    for chunk in chunks_again(reader, norms):
        seen = factor_seen(chunk.left, left), factor_seen(chunk.right, right)
        inner = [(s @ s.mT).double() for s in seen]
        outside[chunk.tasks] = _outside(chunk, (left, right), seen, inner)
        cores.put(chunk, seen)
        if power:
            task_weights = chunk_weights(chunk, entry_norms)
            add_power(chunk.left, inner[1], task_weights, seen[0], pushed[0].mT)
            add_power(chunk.right, inner[0], task_weights, seen[1], pushed[1].mT)
    whole = norms.values.to(reader.device)
    return CompressedTasks(left, right, cores.updates, whole, outside, pushed)


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

    def put(self, chunk: FactorChunk, seen: tuple[Tensor, Tensor]) -> None:
        """Put what the frames see of a chunk's factors (m x r x l and m x r x l') in its place."""
        small = _canonical(chunk, seen)
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
    def updates(self) -> CanonicalUpdates:
        """All of them, once every chunk is in its place."""
        left, sigma, right = self._parts
        return CanonicalUpdates(left.mT, sigma, right.mT, tuple(self._ranks))


def _outside(
    chunk: FactorChunk,
    frames: tuple[Tensor, Tensor],
    seen: tuple[Tensor, Tensor],
    inner: Sequence[Tensor],
) -> Tensor:
    """float64 [tasks]: energy outside the two frames."""
    whole = chunk.norms.square()
    result = whole - (inner[0] * inner[1]).sum((1, 2))
    close = (result < SMALL_LOSS * whole).nonzero()[:, 0]
    if len(close):
        result[close] = _measured_outside(chunk, frames, seen, close)
    return result.clamp_min(0)


def _measured_outside(
    chunk: FactorChunk,
    frames: tuple[Tensor, Tensor],
    seen: tuple[Tensor, Tensor],
    tasks: Tensor,
) -> Tensor:
    """The same for some tasks, from the hidden parts themselves.

    Through triangular factors: a Gram matrix would see the hidden rows of a factor also where the
    other factor cancels them (an update of lower rank than its factors).
    """
    factors = chunk.left[tasks], chunk.right[tasks]
    held = seen[0][tasks], seen[1][tasks]
    hidden = [f - h @ frame.mT for f, h, frame in zip(factors, held, frames, strict=True)]
    return _product_energy(factors[1], hidden[0]) + _product_energy(held[0], hidden[1])


def _product_energy(first: Tensor, second: Tensor) -> Tensor:
    """float64 [tasks]: |first^T second|^2 of m x r x n and m x r x d rows."""
    triangle = torch.linalg.qr(first.mT, mode="r")[1]
    energies: Tensor = (triangle @ second).double().square().sum((1, 2))
    return energies


def _canonical(chunk: FactorChunk, seen: tuple[Tensor, Tensor]) -> CanonicalUpdates:
    """Canonical form of a chunk's cores, float64."""
    left, right = (part.double() for part in seen)
    rank = left.shape[1]
    whole = set(chunk.ranks) == {rank} and rank <= min(left.shape[2], right.shape[2])
    if whole and seen[0].dtype == torch.float32:
        return _by_gram(left, right)
    pairs = [(a[:r].mT, b[:r].mT) for a, b, r in zip(left, right, chunk.ranks, strict=True)]
    return canonicalise(pairs)


def _by_gram(left: Tensor, right: Tensor) -> CanonicalUpdates:
    """The same by eigendecompositions, a third of the time: good to 1e-8 of a task's norm, which
    float32 factors do not tell from nothing.

    With A A^T = C C^T of a core B A, core core^T = B C C^T B^T: eigenvectors v of C^T (B^T B) C
    give the left directions B C v / sigma and the right ones A^T (B^T B) C v / sigma^2.
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
    return CanonicalUpdates(
        to_left.flatten(0, 1).mT, sigma.flatten(), to_right.flatten(0, 1).mT, (rank,) * tasks
    )
