"""The steps of ``joint`` for many tasks and small sides, in blocks of tasks.

So are the cores of a layer that is built out of core. A side's Gram matrix, sum_i w_i^2 dW_i R_i
R_i^T dW_i^T, is small then: each step adds it up block by block in float64 and takes its
eigenvectors. No step needs memory that grows with the number of tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg import truncated
from sharespace.linalg.cores import core_svd
from sharespace.linalg.joint_whole import Found, own_directions
from sharespace.linalg.problem import Bases, Problem

EXACT = 1e-8
"""While so much of the energy, or more, is left out, eigenvectors of a float64 Gram matrix are as
good as singular vectors; noise of 1e-16 in it only matters where hardly anything is left out."""


def many_small(problem: Problem) -> bool:
    """Whether the steps in blocks are the right ones."""
    n, c = problem.updates.left.shape
    side = max(n, problem.updates.right.shape[0])
    return side <= truncated.EXACT_SIDE and c >= side


@dataclass(frozen=True, eq=False)
class Blocks:
    """As ``Whole``; the directions come from exact decompositions in every step."""

    problem: Problem
    k: tuple[int, int]

    def hosvd(self) -> Found:
        """Leading singular vectors of the two weighed unfoldings, each side alone."""
        left = _leading(self.problem, self.k[0], None)[0]
        right = _leading(self.problem.flipped, self.k[1], None)[0]
        return self.given(Bases(left, right))

    def given(self, bases: Bases) -> Found:
        """Bases that are known already."""
        return Found(bases, self.problem.energy(bases))

    def own(self) -> Found:
        """Span of the singular vectors that own SVDs would keep with k columns in all."""
        return self.given(own_directions(self.problem, self.k))

    def sweep(self, found: Found) -> Found:
        """One HOOI sweep: the left basis for the right one, then the right for the new left."""
        left, _ = _leading(self.problem, self.k[0], found.bases)
        now = Bases(found.bases.right, left)
        right, energy = _leading(self.problem.flipped, self.k[1], now)
        bases = Bases(left, right)
        return self.given(bases) if _cut(self.problem, bases) else Found(bases, energy)


def _leading(problem: Problem, k: int, bases: Bases | None) -> tuple[Tensor, float]:
    """The best left basis for a right one, and the energy along it; without bases, of all that
    the tasks are."""
    gram = problem.weights.new_zeros((problem.updates.left.shape[0],) * 2)
    for rows, mix in _parts(problem, bases):
        inner = mix @ mix.mT
        gram.addmm_(rows.flatten(0, 1).mT, (inner @ rows).flatten(0, 1))
    energies, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    energies, vectors = energies.flip(0).clamp_min(0), vectors.flip(1)
    if float(energies[k:].sum()) <= EXACT * float(energies.sum()):
        energies, vectors = _by_triangle(problem, bases)
    keep = truncated.leading_count(energies, k, problem.dropped)
    return vectors[:, :keep].to(problem.updates.left.dtype), float(energies[:keep].sum())


def _by_triangle(problem: Problem, bases: Bases | None) -> tuple[Tensor, Tensor]:
    """The same directions from the stack itself, folded into one triangle block by block."""
    n = problem.updates.left.shape[0]
    triangle = problem.weights.new_zeros(0, n)
    for rows, mix in _parts(problem, bases):
        if mix.shape[2] > mix.shape[1]:
            mix = torch.linalg.qr(mix.mT, mode="r")[1].mT
        stack = (mix.mT @ rows).flatten(0, 1)
        triangle = torch.linalg.qr(torch.cat([triangle, stack]), mode="r")[1]
    _, values, vectors = torch.linalg.svd(triangle, full_matrices=False)
    return values.square(), vectors.mT


def _parts(problem: Problem, bases: Bases | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each block: the left directions as rows (tasks x r x n), and w_i diag(s_i) Z_i^T R_i
    (tasks x r x m), float64; see ``joint_whole._gains``."""
    cut = bases is not None and _cut(problem, bases)
    for tasks, part in problem.updates.slices():
        left, right = (part.blocks(rows.mT.double()) for rows in (part.left, part.right))
        sigma = part.blocks(part.sigma).double()
        seen = right if bases is None else right @ bases.right.double()
        mix = seen * (sigma * problem.weights[tasks, None])[..., None]
        if cut and bases is not None:
            svd = core_svd(left @ bases.left.double(), sigma, seen)
            mix = mix @ svd.right[..., : problem.p]
        yield left, mix


def _cut(problem: Problem, bases: Bases) -> bool:
    """Whether the pseudo-rank takes something away."""
    return problem.p is not None and problem.p < min(
        *bases.k, max(problem.updates.ranks, default=0)
    )
