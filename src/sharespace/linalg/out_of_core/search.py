"""Updates that do not fit in memory: two passes over their factors, in chunks of bounded size.

The first pass (``range_search``) finds frames a little wider than the k that is wanted, the second
(``coordinates``) expresses every task in them. All that follows (HOSVD, sweeps, truncation) works
on the small cores: r_i x l numbers a task and side, the only thing that grows with the tasks.

Where the spectra are flat, as among strangers, two passes find less than the in-memory method.
Then the second pass also takes a step of subspace iteration, and a third one (a fourth at most)
looks again in frames that hold the best bases so far and what that step found.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg.joint import joint
from sharespace.linalg.out_of_core.factor_chunks import FactorReader
from sharespace.linalg.out_of_core.passes import (
    CompressedTasks,
    coordinates,
    entered_weights,
    normal,
    range_search,
    ritz,
    width,
)
from sharespace.linalg.problem import BasisPair, UpdateProblem

REFINEMENTS = 2
"""At most so many passes after the second."""
WORTH_A_PASS = 0.01
"""A refinement is followed by another while it lowers the weighed squared error by this part."""


@dataclass(frozen=True, eq=False)
class FrameSearch:
    """What is looked for."""

    k: tuple[int, int]
    """(k_left, k_right) that are wanted in the end; the frames are wider."""
    p: int | None = None
    """Pseudo-rank, as in ``UpdateProblem``."""
    seed: int = 0
    """Of the sample and the test matrices."""
    entry_norms: Tensor | None = None
    """float64 [tasks], norms whose inverses are the weights, NaN where the update's own is meant;
    None: its own for all."""
    known: BasisPair | None = None
    """Bases that the frames have to contain."""


def compress(rows: FactorReader, wanted: FrameSearch) -> CompressedTasks:
    """Every task in frames that hold, as nearly as a few passes can find, the best k directions.

    The frames hold the strongest k singular directions of single tasks too where these might be
    better, so that ``joint`` on the cores is never worse than own SVDs with k columns in all.

    Raises:
        FloatingPointError: factors that hold NaN, infinity, or numbers too large to compute with.
    """
    found = range_search(rows, wanted.k, wanted.entry_norms, wanted.seed)
    own = found.needs_own(wanted.k)
    left, right = _frames(found.with_own(rows) if own else found.columns, wanted)
    norms = found.norms
    del found
    best = coordinates(rows, left, right, norms, wanted.entry_norms, power=own)
    if not own:
        return best
    bases, lost = _solved(best, wanted)
    for left_to_do in reversed(range(REFINEMENTS)):
        left, right = _frames(_next_columns(best, bases, wanted), wanted)
        best = coordinates(rows, left, right, norms, wanted.entry_norms, power=left_to_do > 0)
        before = lost
        bases, lost = _solved(best, wanted)
        if before - lost <= WORTH_A_PASS * before:
            break
    return best


def problem_of(found: CompressedTasks, wanted: FrameSearch) -> UpdateProblem:
    """The problem on the cores: what is outside of the frames is lost whatever the bases."""
    weighing = entered_weights(found.norms, wanted.entry_norms)
    return UpdateProblem(found.core, weighing, wanted.p, wanted.seed)


def _solved(found: CompressedTasks, wanted: FrameSearch) -> tuple[BasisPair, float]:
    """Bases in the frames' coordinates, and the weighed squared error with them."""
    problem = problem_of(found, wanted)
    bases = joint(problem, wanted.k)
    outside = float((problem.weights.square() * found.outside.to(problem.weights)).sum())
    return bases, outside + problem.total - problem.energy(bases)


def _next_columns(
    found: CompressedTasks, bases: BasisPair, wanted: FrameSearch
) -> tuple[Tensor, Tensor]:
    """The best bases so far, and the leading directions of one more step."""
    results = []
    sides = (
        (found.left, found.pushed[0], bases.left, wanted.k[0]),
        (found.right, found.pushed[1], bases.right, wanted.k[1]),
    )
    for frame, pushed, basis, k in sides:
        turn = ritz(frame, pushed)[1].to(pushed)
        step = pushed @ turn[:, : width(k, *frame.shape)]
        results.append(torch.cat([frame @ basis.to(frame), normal(step)], dim=1))
    return results[0], results[1]


def _frames(columns: tuple[Tensor, Tensor], wanted: FrameSearch) -> tuple[Tensor, Tensor]:
    """Orthonormal frames; float64 on the way, they are small beside a chunk."""
    known = (wanted.known.left, wanted.known.right) if wanted.known else None
    results = []
    for i, found in enumerate(columns):
        parts = [known[i].to(found), found] if known else [found]
        q = torch.linalg.qr(torch.cat(parts, dim=1).double())[0]
        results.append(q.to(found.dtype))
    return results[0], results[1]
