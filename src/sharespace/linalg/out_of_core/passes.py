"""The second pass: every task in coordinates of two frames, and what lies outside of them.

The first pass: directions that hold most of all tasks' weighed energy, side by side.

Each side's weighed Gram matrix is applied to a test matrix: one step of subspace iteration, as a
sum over chunks (Halko, Martinsson, Tropp 2011, SIAM Review 53(2), algorithm 4.4; out of core:
Halko, Martinsson, Shkolnisky, Tygert 2011, SIAM J. Sci. Comput. 33(5)). A random test matrix would
double the noise of related tasks that it lets in; ours is the same iteration's result for a random
sample of the tasks, and fresh random columns for what the sample does not show.

The strongest weighed singular directions of single tasks, kept while the tasks pass by.

One step of subspace iteration on a side's weighed Gram matrix, as a sum over chunks of tasks.

G = sum_i w_i^2 dW_i dW_i^T is never formed: dW_i dW_i^T x = B_i (A_i A_i^T) (B_i^T x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from sharespace.linalg.out_of_core.factor_chunks import (
    FactorChunk,
    FactorReader,
    MeasuredChunk,
    MeasuredNorms,
    chunks,
    chunks_again,
    read_chunk,
    sample,
)
from sharespace.linalg.updates import CanonicalUpdates, canonicalise, weights

SMALL_LOSS = 1e-3
"""Relative energy below which what lies outside a frame is measured and not taken as a difference
of energies, whose rounding is 1e-6 of the norm in float32."""

SAMPLE = 8
"""Columns of the sample's factors by columns of a frame: with more the start is hardly better."""

PILOT_STEPS = 2
"""Steps of subspace iteration on the sample; its directions only have to be a good start."""


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


def coordinates(
    rows: FactorReader,
    left: Tensor,
    right: Tensor,
    norms: MeasuredNorms,
    entry_norms: Tensor | None = None,
    *,
    power: bool,
) -> CompressedTasks:
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

    def put(self, chunk: FactorChunk, found: tuple[Tensor, Tensor]) -> None:
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
    def updates(self) -> CanonicalUpdates:
        left, sigma, right = self._parts
        return CanonicalUpdates(left.mT, sigma, right.mT, tuple(self._ranks))


def _outside(
    chunk: FactorChunk,
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
    chunk: FactorChunk,
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


def _canonical(chunk: FactorChunk, found: tuple[Tensor, Tensor]) -> CanonicalUpdates:
    """Canonical form of a chunk's cores, float64."""
    left, right = (part.double() for part in found)
    rank = left.shape[1]
    whole = set(chunk.ranks) == {rank} and rank <= min(left.shape[2], right.shape[2])
    if whole and found[0].dtype == torch.float32:
        return _by_gram(left, right)
    pairs = [(a[:r].mT, b[:r].mT) for a, b, r in zip(left, right, chunk.ranks, strict=True)]
    return canonicalise(pairs)


def _by_gram(left: Tensor, right: Tensor) -> CanonicalUpdates:
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
    return CanonicalUpdates(
        to_left.flatten(0, 1).mT, sigma.flatten(), to_right.flatten(0, 1).mT, (rank,) * tasks
    )


@dataclass(frozen=True, eq=False)
class FirstPass:
    """What the first pass found."""

    left: Tensor
    """n x l: the left Gram matrix times its test matrix."""
    right: Tensor
    """d x l'."""
    norms: MeasuredNorms
    total: float
    """Weighed energy of all tasks."""
    captured: tuple[Tensor, Tensor]
    """float64, descending: energies along directions of the test matrices; what the directions
    found hold never falls short of their sums."""
    own: OwnDirections

    def needs_own(self, k: tuple[int, int]) -> bool:
        """False where the leading directions of both sides surely hold more than the own ones."""
        left, right = (float(c[:n].sum()) for c, n in zip(self.captured, k, strict=True))
        return left + right - self.total < self.own.energy

    @property
    def columns(self) -> tuple[Tensor, Tensor]:
        """All directions, of length 1, without those of single tasks."""
        return normal(self.left), normal(self.right)

    def with_own(self, rows: FactorReader) -> tuple[Tensor, Tensor]:
        """With those of single tasks, which are read again."""
        left, right = (
            torch.cat(pair, dim=1) for pair in zip(self.columns, self.own.read(rows), strict=True)
        )
        return left, right


def range_search(
    rows: FactorReader, k: tuple[int, int], entry_norms: Tensor | None = None, seed: int = 0
) -> FirstPass:
    """One pass over all tasks, after one look at a sample; see ``streamed.compress``."""
    tests = _pilot(rows, k, entry_norms, torch.Generator().manual_seed(seed))
    sums = [zero_sum(t) for t in tests]
    own = OwnDirections.none(min(k))
    norms, total = MeasuredNorms.none(len(rows.ranks)), 0.0
    for chunk in chunks(rows):
        weighing = chunk_weights(chunk, entry_norms)
        total += float((weighing * chunk.norms).square().sum())
        norms.put(chunk)
        own = own.with_more(chunk, weighing)
        for (factor, gram), test, target in zip(sides(chunk), tests, sums, strict=True):
            add_power(factor, gram, weighing, seen(factor, test), target.mT)
    left, right = (ritz(t, s)[0] for t, s in zip(tests, sums, strict=True))
    return FirstPass(sums[0], sums[1], norms, total, (left, right), own)


def _pilot(
    rows: FactorReader, k: tuple[int, int], entry_norms: Tensor | None, generator: torch.Generator
) -> list[Tensor]:
    """Test matrices (n x l, d x l'), orthonormal: what a random sample of the tasks says."""
    columns = sum(rows.ranks)
    wanted = SAMPLE * max(width(most, max(rows.n, rows.d), columns) for most in k)
    tasks = sample(rows, generator, wanted)
    chunk = read_chunk(rows, tasks)
    weighing = chunk_weights(chunk, entry_norms)
    whole = len(tasks) == len(rows.ranks)
    results = []
    for (factor, gram), side, most in zip(sides(chunk), (rows.n, rows.d), k, strict=True):
        test = orthonormal_columns(_random(side, width(most, side, columns), rows, generator))
        for _ in range(PILOT_STEPS):
            pushed = zero_sum(test)
            add_power(factor, gram, weighing, seen(factor, test), pushed.mT)
            turned = normal(pushed @ ritz(test, pushed)[1].to(pushed))
            test = orthonormal_columns(turned)
        if not whole:
            fresh = _random(side, max(test.shape[1] - most, 0), rows, generator)
            test = orthonormal_columns(torch.cat([test[:, :most], fresh], dim=1))
        results.append(test)
    return results


def _random(side: int, columns: int, rows: FactorReader, generator: torch.Generator) -> Tensor:
    return torch.randn(side, columns, generator=generator).to(rows.device, rows.dtype)


@dataclass(frozen=True, eq=False)
class OwnDirections:
    """At most ``most`` singular directions of the tasks, the strongest so far: whose they are. The
    few tasks that have one are read again for them, where they are wanted."""

    most: int
    strengths: Tensor
    """float64, descending: w_i sigma."""
    tasks: Tensor
    """int64: whose direction."""
    columns: Tensor
    """int64: and which of its directions, the strongest is 0."""

    @classmethod
    def none(cls, most: int) -> OwnDirections:
        """Before the first task."""
        return cls(most, torch.zeros(0, dtype=torch.float64), *torch.zeros(2, 0, dtype=torch.long))

    @property
    def energy(self) -> float:
        """Weighed energy of the directions: what own SVDs of so many columns would keep."""
        return float(self.strengths.square().sum())

    @property
    def weakest(self) -> float:
        """What a further direction has to beat."""
        return float(self.strengths[-1]) if len(self.strengths) == self.most else 0.0

    def with_more(self, chunk: MeasuredChunk, weights: Tensor) -> OwnDirections:
        """With those of a chunk's directions that are stronger than the weakest so far."""
        able = (_largest(chunk).sqrt() * weights > self.weakest).nonzero()[:, 0]
        if not len(able):
            return self
        _, inner = _inner(chunk, able)
        energies = torch.linalg.eigvalsh(inner).flip(1).clamp_min(0)
        found = (energies.sqrt() * weights[able, None]).cpu()
        tasks = torch.tensor(chunk.tasks)[able.cpu()]
        strengths = torch.cat([self.strengths, found.flatten()])
        order = strengths.argsort(descending=True, stable=True)[: self.most]
        order = order[strengths[order] > 0]
        rank = found.shape[1]
        return OwnDirections(
            self.most,
            strengths[order],
            torch.cat([self.tasks, tasks.repeat_interleave(rank)])[order],
            torch.cat([self.columns, torch.arange(rank).repeat(len(tasks))])[order],
        )

    def read(self, rows: FactorReader) -> tuple[Tensor, Tensor]:
        """The directions themselves: n x count and d x count, columns of length 1."""
        found = [
            _directions(chunk, self.tasks, self.columns)
            for chunk in chunks(rows, set(self.tasks.tolist()))
        ]
        none = (torch.empty(s, 0, dtype=rows.dtype, device=rows.device) for s in (rows.n, rows.d))
        left, right = zip(tuple(none), *found, strict=True)
        return torch.cat(left, dim=1), torch.cat(right, dim=1)


def _directions(chunk: MeasuredChunk, tasks: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Those of a chunk's directions that are wanted.

    With A A^T = L L^T, the squared singular values of B A are the eigenvalues of L^T (B^T B) L; an
    eigenvector v gives y ~ B L v and z ~ A^T (B^T B) L v.
    """
    root, inner = _inner(chunk, torch.arange(len(chunk.tasks), device=chunk.left.device))
    vectors = torch.linalg.eigh(inner)[1].flip(2)
    place = {task: i for i, task in enumerate(chunk.tasks)}
    wanted = [
        (place[t], c) for t, c in zip(tasks.tolist(), columns.tolist(), strict=True) if t in place
    ]
    at, column = torch.tensor(wanted, device=root.device).T
    left_mix = root[at] @ vectors[at, :, column][..., None]
    right_mix = chunk.left_gram[at] @ left_mix
    left, right = (
        _unit((mix.mT.to(rows.dtype) @ rows[at])[:, 0].mT)
        for mix, rows in ((left_mix, chunk.left), (right_mix, chunk.right))
    )
    return left, right


def _inner(chunk: MeasuredChunk, tasks: Tensor) -> tuple[Tensor, Tensor]:
    """L and L^T (B^T B) L of some tasks."""
    root = cholesky_root(chunk.right_gram[tasks], chunk.right.dtype)
    return root, root.mT @ chunk.left_gram[tasks] @ root


def _largest(chunk: MeasuredChunk) -> Tensor:
    """[tasks]: no less than the squared norm of B A, mostly by a few percent. Most tasks need no
    decomposition then, which takes ten times as long.

    Its eighth power is at most the trace of (A A^T B^T B)^8; that product is not symmetric, so what
    rounding of its powers may take away is added.
    """
    product = chunk.right_gram @ chunk.left_gram
    scale = torch.linalg.matrix_norm(product).clamp_min(torch.finfo(product.dtype).tiny)
    power = product / scale[:, None, None]
    for _ in range(2):
        power = power @ power
    trace = (power * power.mT).sum((1, 2)).clamp_min(0)
    rounding = 64 * product.shape[1] * torch.finfo(product.dtype).eps
    bound: Tensor = scale * (trace + rounding) ** (1 / 8)
    return bound


def cholesky_root(gram: Tensor, dtype: torch.dtype) -> Tensor:
    """L with L L^T = gram but for rounding of the factors' dtype, by which it is lifted: a factor's
    rank need not be full. Only which directions are chosen depends on it."""
    trace = gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(gram.dtype).tiny)
    identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    lifted = gram / trace[:, None, None] + 4 * torch.finfo(dtype).eps * identity
    result: Tensor = torch.linalg.cholesky(lifted) * trace.sqrt()[:, None, None]
    return result


def _unit(columns: Tensor) -> Tensor:
    result: Tensor = columns / columns.norm(dim=0).clamp_min(torch.finfo(columns.dtype).tiny)
    return result


def width(k: int, side: int, columns: int) -> int:
    """Columns of a test matrix: a quarter more than are wanted, at least 8 more."""
    return min(k + max(8, k // 4), side, max(columns, 1))


def entered_weights(norms: Tensor, entry_norms: Tensor | None) -> Tensor:
    """float64 [tasks]: inverse norms of entry where they are known, else of the updates."""
    if entry_norms is None:
        return weights(norms)
    entered = entry_norms.to(norms)
    return weights(torch.where(entered.isnan(), norms, entered))


def chunk_weights(chunk: FactorChunk, entry_norms: Tensor | None) -> Tensor:
    """float64 [tasks of the chunk]."""
    return entered_weights(chunk.norms, None if entry_norms is None else entry_norms[chunk.tasks])


def sides(chunk: MeasuredChunk) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(one factor's rows, the other one's Gram) of the left and of the right side."""
    return (chunk.left, chunk.right_gram), (chunk.right, chunk.left_gram)


def seen(factor: Tensor, columns: Tensor) -> Tensor:
    """m x r x l: B_i^T columns, for all rows in one product."""
    # The wide side last: a tenth faster than the product the other way round.
    rows = (columns.mT @ factor.flatten(0, 1).mT).mT.contiguous()
    return rows.reshape(*factor.shape[:2], -1)


def add_power(factor: Tensor, inner: Tensor, weighing: Tensor, test: Tensor, into: Tensor) -> None:
    """Add sum_i w_i^2 B_i inner_i (B_i^T columns), transposed, to ``into`` (l x n).

    Args:
        factor: m x r x n, B_i^T.
        inner: float64, m x r x r: A_i A_i^T, or what a frame sees of it.
        weighing: float64 [m], w_i.
        test: m x r x l, what the columns see of each task: B_i^T columns.
    """
    gains = (weighing.square()[:, None, None] * inner).to(factor.dtype)
    into.addmm_((gains @ test).flatten(0, 1).mT, factor.flatten(0, 1))


def zero_sum(columns: Tensor) -> Tensor:
    """Zeros like the columns (n x l), column by column in memory, as ``add_power`` takes them."""
    return columns.new_zeros(columns.shape[1], columns.shape[0]).mT


def orthonormal_columns(columns: Tensor) -> Tensor:
    """By QR in float64: small beside a chunk."""
    q: Tensor = torch.linalg.qr(columns.double())[0]
    return q.to(columns.dtype)


def normal(columns: Tensor) -> Tensor:
    """Columns of length 1, zero ones as they are."""
    tiny = torch.finfo(columns.dtype).tiny
    result: Tensor = columns / torch.linalg.vector_norm(columns, dim=0).clamp_min(tiny)
    return result


def ritz(test: Tensor, pushed: Tensor) -> tuple[Tensor, Tensor]:
    """Energies along the directions of an orthonormal test matrix, descending, and the directions
    (float64), from what the Gram matrix makes of it."""
    inner = test.double().mT @ pushed.double()
    energies, vectors = torch.linalg.eigh((inner + inner.mT) / 2)
    return energies.flip(0).clamp_min(0), vectors.flip(1)
