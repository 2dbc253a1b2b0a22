"""The first pass out of core: directions that hold most of all tasks' weighed energy, by side.

Each side's weighed Gram matrix is applied to a test matrix: one step of subspace iteration, as a
sum over chunks (Halko, Martinsson, Tropp 2011, SIAM Review 53(2), algorithm 4.4; out of core:
Halko, Martinsson, Shkolnisky, Tygert 2011, SIAM J. Sci. Comput. 33(5)). A random test matrix, the
textbook's, would double the noise of related tasks that it lets in; here it is the same iteration's
result for a random sample of the tasks, and fresh random columns for what the sample does not show.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg.out_of_core.factor_chunks import (
    FactorReader,
    MeasuredChunk,
    MeasuredNorms,
    add_power,
    cholesky_root,
    chunk_weights,
    chunks,
    factor_seen,
    read_chunk,
    sample_tasks,
    sides,
    zero_sum,
)
from sharespace.linalg.problem import SAMPLE_COLUMNS
from sharespace.linalg.truncated import (
    orthonormal_float64,
    rayleigh_ritz,
    sketch_width,
    unit_columns,
)

SAMPLE_STEPS = 2
"""Steps of subspace iteration on the sample; its directions only have to be a good start."""


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
