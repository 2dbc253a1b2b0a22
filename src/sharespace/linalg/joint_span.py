"""Few tasks with wide sides: the same problem in coordinates of the span of their directions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharespace.linalg import truncated
from sharespace.linalg.canonical import Updates
from sharespace.linalg.problem import Bases, Problem


@dataclass(frozen=True, eq=False)
class InSpan:
    """A problem whose sides are no wider than its tasks have directions."""

    left: Tensor
    """float64, n x c: an orthonormal basis of all left directions."""
    right: Tensor
    """float64, d x c."""
    problem: Problem
    """The same in their coordinates; nothing is outside."""

    def inside(self, bases: Bases | None) -> Bases | None:
        """Bases of the whole problem that lie in the span, in its coordinates."""
        if bases is None:
            return None
        left, right = self.left.mT @ bases.left.double(), self.right.mT @ bases.right.double()
        return Bases(left.to(bases.left), right.to(bases.right))

    def whole(self, bases: Bases) -> Bases:
        """And back."""
        # The wide side last, where QR has it contiguous: several times as fast.
        left, right = (
            (basis.double().mT @ span.mT).mT.to(basis)
            for basis, span in ((bases.left, self.left), (bases.right, self.right))
        )
        return Bases(left, right)


def few_wide(problem: Problem) -> bool:
    """Whether the tasks have fewer directions than both sides, and few enough for decompositions
    of them all: one of the wide sides then serves every step."""
    n, c = problem.updates.left.shape
    return 0 < c <= truncated.EXACT_SIDE and c < min(n, problem.updates.right.shape[0])


def in_span(problem: Problem) -> InSpan:
    """By one QR a side, in float64."""
    updates = problem.updates
    left, left_core = torch.linalg.qr(updates.left.double())
    right, right_core = torch.linalg.qr(updates.right.double())
    core = Updates(
        left_core.to(updates.left), updates.sigma, right_core.to(updates.right), updates.ranks
    )
    return InSpan(left, right, replace(problem, updates=core))
