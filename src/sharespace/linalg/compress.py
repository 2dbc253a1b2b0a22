"""Updates that do not fit in memory, in coordinates of two frames: two passes over their factors.

The first pass (``range_search``) finds frames a little wider than the k that is wanted, the second
(``coordinates``) expresses every task in them. All that follows (HOSVD, sweeps, truncation) works
on the small cores: r_i x l numbers a task and side, the only thing that grows with the tasks.

In the first pass each side's weighed Gram matrix is applied to a test matrix: one step of subspace
iteration, as a sum over chunks (Halko, Martinsson, Tropp 2011, SIAM Review 53(2), algorithm 4.4;
out of core: Halko, Martinsson, Shkolnisky, Tygert 2011, SIAM J. Sci. Comput. 33(5)). A random test
matrix, the textbook's, would double the noise of related tasks that it lets in; here it is the same
iteration's result for a random sample of the tasks, and fresh random columns for what the sample
does not show.

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

from sharespace.linalg.factor_chunks import (
    FactorChunk,
    FactorReader,
    MeasuredChunk,
    MeasuredNorms,
    add_power,
    cholesky_root,
    chunk_weights,
    chunks,
    chunks_again,
    entered_weights,
    factor_seen,
    read_chunk,
    sample_tasks,
    sides,
    zero_sum,
)
from sharespace.linalg.joint import joint
from sharespace.linalg.problem import SAMPLE_COLUMNS, BasisPair, UpdateProblem
from sharespace.linalg.truncated import (
    orthonormal_float64,
    rayleigh_ritz,
    sketch_width,
    unit_columns,
)
from sharespace.linalg.updates import CanonicalUpdates, canonicalise

SAMPLE_STEPS = 2
"""Steps of subspace iteration on the sample; its directions only have to be a good start."""
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


@dataclass(frozen=True, eq=False)
class FirstPass:
    """Directions of both sides, and what the pass measured of the tasks on the way."""

    left: Tensor
    """n x l: the left Gram matrix times its test matrix."""
    right: Tensor
    """d x l': the same on the right."""
    norms: MeasuredNorms
    total: float
    """Weighed energy of all tasks."""
    captured: tuple[Tensor, Tensor]
    """float64, descending: energies along directions of the test matrices. The directions ``left``
    and ``right`` hold at least the sums of these."""
    own: OwnDirections

    def needs_own(self, k: tuple[int, int]) -> bool:
        """False where the leading directions of both sides surely hold more than the own ones."""
        left, right = (float(c[:n].sum()) for c, n in zip(self.captured, k, strict=True))
        # As in ``problem.in_frames``: |P_L dW P_R|^2 >= |P_L dW|^2 + |dW P_R|^2 - |dW|^2.
        return left + right - self.total < self.own.energy

    @property
    def columns(self) -> tuple[Tensor, Tensor]:
        """All directions, of length 1, without those of single tasks."""
        return unit_columns(self.left), unit_columns(self.right)

    def with_task_directions(self, reader: FactorReader) -> tuple[Tensor, Tensor]:
        """All directions with those of single tasks, which are read again."""
        left, right = (
            torch.cat(pair, dim=1) for pair in zip(self.columns, self.own.read(reader), strict=True)
        )
        return left, right


def range_search(
    reader: FactorReader, k: tuple[int, int], entry_norms: Tensor | None = None, seed: int = 0
) -> FirstPass:
    """One pass over all tasks, after one look at a sample of them.

    Args:
        reader: the factors of the tasks, dW_i = B_i A_i.
        k: (k_left, k_right) that are wanted in the end; more directions than that are found.
        entry_norms: float64 [tasks], see ``compress.FrameSearch``.
        seed: of the sample and the random columns.

    Raises:
        FloatingPointError: factors hold NaN, infinity, or numbers too large to compute with.
    """
    tests = _test_matrices(reader, k, entry_norms, torch.Generator().manual_seed(seed))
    sums = [zero_sum(t) for t in tests]
    own = OwnDirections.none(min(k))
    norms, total = MeasuredNorms.none(len(reader.ranks)), 0.0
    for chunk in chunks(reader):
        task_weights = chunk_weights(chunk, entry_norms)
        total += float((task_weights * chunk.norms).square().sum())
        norms.put(chunk)
        own = own.with_chunk(chunk, task_weights)
        for (factor, gram), test, target in zip(sides(chunk), tests, sums, strict=True):
            add_power(factor, gram, task_weights, factor_seen(factor, test), target.mT)
    left, right = (rayleigh_ritz(t, s)[0] for t, s in zip(tests, sums, strict=True))
    return FirstPass(sums[0], sums[1], norms, total, (left, right), own)


def _test_matrices(
    reader: FactorReader,
    k: tuple[int, int],
    entry_norms: Tensor | None,
    generator: torch.Generator,
) -> list[Tensor]:
    """n x l and d x l', orthonormal: leading directions of a random sample, and random columns."""
    columns = sum(reader.ranks)
    wanted = SAMPLE_COLUMNS * max(
        sketch_width(most, max(reader.n, reader.d), columns) for most in k
    )
    tasks = sample_tasks(reader, generator, wanted)
    chunk = read_chunk(reader, tasks)
    task_weights = chunk_weights(chunk, entry_norms)
    # A sample of all tasks shows everything; random columns beside it would only bring noise.
    whole = len(tasks) == len(reader.ranks)
    results = []
    for (factor, gram), side, most in zip(sides(chunk), (reader.n, reader.d), k, strict=True):
        fresh = _random(side, sketch_width(most, side, columns), reader, generator)
        test = orthonormal_float64(fresh)
        for _ in range(SAMPLE_STEPS):
            pushed = zero_sum(test)
            add_power(factor, gram, task_weights, factor_seen(factor, test), pushed.mT)
            ritz_vectors = unit_columns(pushed @ rayleigh_ritz(test, pushed)[1].to(pushed))
            test = orthonormal_float64(ritz_vectors)
        if not whole:
            fresh = _random(side, max(test.shape[1] - most, 0), reader, generator)
            test = orthonormal_float64(torch.cat([test[:, :most], fresh], dim=1))
        results.append(test)
    return results


def _random(side: int, columns: int, reader: FactorReader, generator: torch.Generator) -> Tensor:
    # Drawn on the CPU in float32, so that a seed means the same on every device.
    return torch.randn(side, columns, generator=generator).to(reader.device, reader.dtype)


@dataclass(frozen=True, eq=False)
class OwnDirections:
    """The strongest weighed singular directions of single tasks, kept while the tasks pass by.

    Only whose they are is kept: the few tasks that have one are read again for them, where they are
    wanted.
    """

    most: int
    """At most so many are kept."""
    strengths: Tensor
    """float64, descending: w_i sigma_j."""
    tasks: Tensor
    """int64: i, whose direction."""
    columns: Tensor
    """int64: j, which of its directions; the strongest is 0."""

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

    def with_chunk(self, chunk: MeasuredChunk, task_weights: Tensor) -> OwnDirections:
        """With those of a chunk's directions that are stronger than the weakest so far."""
        strong = (_largest(chunk).sqrt() * task_weights > self.weakest).nonzero()[:, 0]
        if not len(strong):
            return self
        _, inner = _inner(chunk, strong)
        energies = torch.linalg.eigvalsh(inner).flip(1).clamp_min(0)
        fresh = (energies.sqrt() * task_weights[strong, None]).cpu()
        tasks = torch.tensor(chunk.tasks)[strong.cpu()]
        strengths = torch.cat([self.strengths, fresh.flatten()])
        order = strengths.argsort(descending=True, stable=True)[: self.most]
        # Directions of strength 0 are those of updates that are zero, or of a lower rank.
        order = order[strengths[order] > 0]
        rank = fresh.shape[1]
        return OwnDirections(
            self.most,
            strengths[order],
            torch.cat([self.tasks, tasks.repeat_interleave(rank)])[order],
            torch.cat([self.columns, torch.arange(rank).repeat(len(tasks))])[order],
        )

    def read(self, reader: FactorReader) -> tuple[Tensor, Tensor]:
        """The directions themselves: n x count and d x count, columns of length 1."""
        by_chunk = [
            _directions(chunk, self.tasks, self.columns)
            for chunk in chunks(reader, set(self.tasks.tolist()))
        ]
        none = (
            torch.empty(side, 0, dtype=reader.dtype, device=reader.device)
            for side in (reader.n, reader.d)
        )
        left, right = zip(tuple(none), *by_chunk, strict=True)
        return torch.cat(left, dim=1), torch.cat(right, dim=1)


def _directions(chunk: MeasuredChunk, tasks: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Those of a chunk's directions that are wanted.

    With A A^T = C C^T, the squared singular values of B A are the eigenvalues of C^T (B^T B) C; an
    eigenvector v gives y ~ B C v and z ~ A^T (B^T B) C v.
    """
    root, inner = _inner(chunk, torch.arange(len(chunk.tasks), device=chunk.left.device))
    vectors = torch.linalg.eigh(inner)[1].flip(2)
    place = {task: i for i, task in enumerate(chunk.tasks)}
    wanted = [
        (place[t], c) for t, c in zip(tasks.tolist(), columns.tolist(), strict=True) if t in place
    ]
    index, column = torch.tensor(wanted, device=root.device).T
    left_mix = root[index] @ vectors[index, :, column][..., None]
    right_mix = chunk.left_gram[index] @ left_mix
    left, right = (
        unit_columns((_unit(mix).mT.to(rows.dtype) @ rows[index])[:, 0].mT)
        for mix, rows in ((left_mix, chunk.left), (right_mix, chunk.right))
    )
    return left, right


def _unit(mix: Tensor) -> Tensor:
    """Columns of length 1, float64: as they are they need not be numbers of float32."""
    lengths = torch.linalg.vector_norm(mix, dim=1, keepdim=True)
    unit: Tensor = mix / lengths.clamp_min(torch.finfo(mix.dtype).tiny)
    return unit


def _inner(chunk: MeasuredChunk, tasks: Tensor) -> tuple[Tensor, Tensor]:
    """C and C^T (B^T B) C of some tasks."""
    root = cholesky_root(chunk.right_gram[tasks], chunk.right.dtype)
    return root, root.mT @ chunk.left_gram[tasks] @ root


def _largest(chunk: MeasuredChunk) -> Tensor:
    """[tasks]: no less than the squared spectral norm of B A, mostly by a few percent.

    Most tasks need no decomposition then, which takes ten times as long. The eighth power of the
    squared norm is at most the trace of (A A^T B^T B)^8; that product is not symmetric, so what
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
