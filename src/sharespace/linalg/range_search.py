"""The first pass: directions that hold most of all tasks' weighed energy, side by side.

Each side's weighed Gram matrix is applied to a test matrix: one step of subspace iteration, as a
sum over chunks (Halko, Martinsson, Tropp 2011, SIAM Review 53(2), algorithm 4.4; out of core:
Halko, Martinsson, Shkolnisky, Tygert 2011, SIAM J. Sci. Comput. 33(5)). A random test matrix would
double the noise of related tasks that it lets in; ours is the same iteration's result for a random
sample of the tasks, and fresh random columns for what the sample does not show.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg.own_directions import OwnDirections
from sharespace.linalg.power import (
    add_power,
    chunk_weights,
    normal,
    orthonormal_columns,
    ritz,
    seen,
    sides,
    width,
    zero_sum,
)
from sharespace.linalg.row_chunks import Norms, Rows, chunks, read_chunk, sample

SAMPLE = 8
"""Columns of the sample's factors by columns of a frame: with more the start is hardly better."""
PILOT_STEPS = 2
"""Steps of subspace iteration on the sample; its directions only have to be a good start."""


@dataclass(frozen=True, eq=False)
class Found:
    """What the first pass found."""

    left: Tensor
    """n x l: the left Gram matrix times its test matrix."""
    right: Tensor
    """d x l'."""
    norms: Norms
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

    def with_own(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """With those of single tasks, which are read again."""
        left, right = (
            torch.cat(pair, dim=1) for pair in zip(self.columns, self.own.read(rows), strict=True)
        )
        return left, right


def range_search(
    rows: Rows, k: tuple[int, int], entry_norms: Tensor | None = None, seed: int = 0
) -> Found:
    """One pass over all tasks, after one look at a sample; see ``streamed.compress``."""
    tests = _pilot(rows, k, entry_norms, torch.Generator().manual_seed(seed))
    sums = [zero_sum(t) for t in tests]
    own = OwnDirections.none(min(k))
    norms, total = Norms.none(len(rows.ranks)), 0.0
    for chunk in chunks(rows):
        weighing = chunk_weights(chunk, entry_norms)
        total += float((weighing * chunk.norms).square().sum())
        norms.put(chunk)
        own = own.with_more(chunk, weighing)
        for (factor, gram), test, target in zip(sides(chunk), tests, sums, strict=True):
            add_power(factor, gram, weighing, seen(factor, test), target.mT)
    left, right = (ritz(t, s)[0] for t, s in zip(tests, sums, strict=True))
    return Found(sums[0], sums[1], norms, total, (left, right), own)


def _pilot(
    rows: Rows, k: tuple[int, int], entry_norms: Tensor | None, generator: torch.Generator
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


def _random(side: int, columns: int, rows: Rows, generator: torch.Generator) -> Tensor:
    return torch.randn(side, columns, generator=generator).to(rows.device, rows.dtype)
