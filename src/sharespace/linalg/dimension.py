"""The subspace dimension of one layer: fixed, or as explained variance or a largest error needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from sharespace.errors import OptionError
from sharespace.linalg.frames import errors
from sharespace.linalg.joint import hosvd, joint
from sharespace.linalg.problem import BasisPair, UpdateProblem
from sharespace.linalg.updates import cores, seen_by
from sharespace.options import Limits, OptionType, check_option, check_options, option

_FIRST_GUESS = 64
"""Directions a side of the first HOSVD; most layers need fewer, and its cost grows with them."""


@dataclass(frozen=True)
class Dimension:
    """How the number of directions k of every layer is chosen; exactly one of the four is given.

    Raises:
        OptionError: none or several are given, or a value is of a wrong type or out of range.
    """

    k: int | Mapping[str, int | tuple[int, int]] | None = None
    """A fixed k for both sides of every layer, or a pattern for names of layers -> k or (k_left,
    k_right); the first pattern that matches counts."""
    variance: float | None = option(None, above=0, most=1)
    """Smallest k whose two-sided explained variance reaches this fraction; 1 keeps everything
    (docs/method.md, "Explained variance")."""
    error: float | None = option(None, above=0, most=1)
    """Smallest k with which no task's relative error in the layer exceeds this."""
    budget: int | None = option(None, least=1)
    """Bytes for bases and coefficients of all layers together (docs/method.md, "Rate
    allocation")."""

    def __post_init__(self) -> None:
        check_options(self)
        given = [n for n in ("k", "variance", "error", "budget") if getattr(self, n) is not None]
        if len(given) != 1:
            rules = " and ".join(given) or "nothing"
            raise OptionError(
                "the dimension", f"got {rules}", "Give one of k, variance, error, budget"
            )
        if self.k is not None:
            _check_k(self.k)

    def cap(self, module: str) -> tuple[int, int] | None:
        """The largest k to which the layer may grow, where k is fixed.

        Args:
            module: name of the layer.

        Returns:
            (k_left, k_right); None under the other rules.

        Raises:
            OptionError: k is a mapping and no pattern matches the module.
        """
        if self.k is None:
            return None
        if not isinstance(self.k, Mapping):
            return self.k, self.k
        for pattern, value in self.k.items():
            if fnmatchcase(module, pattern):
                return value if isinstance(value, tuple) else (value, value)
        raise OptionError(
            f"k for module {module!r}", "no pattern matches it", "Add '*' as the last pattern"
        )


def _check_k(k: object) -> None:
    """Refuse a k that is not a whole number above 0, or a pair of them, for each pattern."""
    if not isinstance(k, Mapping):
        check_option("k", k, OptionType(int), Limits(least=1))
        return
    for pattern, value in k.items():
        sides = value if isinstance(value, tuple) else (value, value)
        if len(sides) != 2:
            raise OptionError(
                f"k={value!r} for {pattern!r}",
                "has not one number for each side",
                "Give one whole number, or a pair (k_left, k_right)",
            )
        for side in sides:
            check_option(f"{pattern!r}: k", side, OptionType(int), Limits(least=1))


def smallest_bases(problem: UpdateProblem, dimension: Dimension) -> BasisPair:
    """Joint bases with as few numbers as the variance or the error rule allows.

    Args:
        problem: the updates dW_i, their weights w_i and the pseudo-rank p.
        dimension: with ``variance`` or ``error``.

    Raises:
        OptionError: the pseudo-rank p alone already costs more than the rule allows.
    """
    _check_reachable(problem, dimension)
    # A HOSVD of ``guess`` directions is nested: of fewer it is the first of them. Only where all
    # of them do not fulfil the rule is a larger one computed.
    limit = max(problem.updates.left.shape[0], problem.updates.right.shape[0])
    if dimension.variance == 1.0:
        # The span of all directions has all that sweeps could gain, and they only add rounding.
        return hosvd(problem, (limit, limit))
    guess = min(_FIRST_GUESS, limit)
    while True:
        start = hosvd(problem, (guess, guess))
        for k in _candidates(problem, dimension, start):
            bases = joint(problem, k, start=start.first(k))
            if _fulfils(problem, dimension, bases):
                return bases
        if guess == limit:
            return start
        guess = min(4 * guess, limit)


def _candidates(
    problem: UpdateProblem, dimension: Dimension, start: BasisPair
) -> Iterator[tuple[int, int]]:
    """The cheapest (k_left, k_right) that the HOSVD needs, then ever larger ones up to its own;
    none where it is too small.

    The table does not know of the pseudo-rank, which may ask for more than the cheapest; after a
    sweep the cheapest is enough otherwise.
    """
    # All pairs, not each side alone: directions on one side only reconstruct nothing.
    table = _fulfilled(problem, start, dimension)
    if not bool(table.any()):
        return
    k = _cheapest(table, problem)
    while k != start.k:
        yield k
        # A tenth more each time: k is never overshot by more, in a number of runs that grows with
        # its logarithm.
        k = min(k[0] + k[0] // 10 + 1, start.k[0]), min(k[1] + k[1] // 10 + 1, start.k[1])
    yield k


def _fulfilled(problem: UpdateProblem, bases: BasisPair, dimension: Dimension) -> Tensor:
    """bool [k_left, k_right]: which numbers of leading directions fulfil the rule, p left aside."""
    if dimension.error is None:
        target = (dimension.variance or 0.0) * problem.total
        return energy_table(problem, bases, problem.weights) >= target
    allowed = (1 - dimension.error**2) * problem.updates.norms.square()
    result = torch.ones(bases.k, dtype=torch.bool)
    for task, core in enumerate(each_core(problem, bases)):
        result &= (core.square().cumsum(0).cumsum(1) >= allowed[task]).cpu()
    return result


def energy_table(problem: UpdateProblem, bases: BasisPair, weights: Tensor) -> Tensor:
    """float64 [k_left, k_right]: the weighed energy that the leading a left and b right directions
    capture is at [a - 1, b - 1].

    The leading part of a core is the core of the leading directions, so that one sum over the core
    has the energies of all pairs.
    """
    table = torch.zeros(bases.k, dtype=torch.float64)
    for weight, core in zip(weights.tolist(), each_core(problem, bases), strict=True):
        table += (weight * core).square().cpu()
    return table.cumsum(0).cumsum(1)


def each_core(problem: UpdateProblem, bases: BasisPair) -> Iterator[Tensor]:
    """The cores one after the other: all at once would be tasks x k^2 numbers."""
    seen = _seen(problem, bases)
    for left, sigma, right in zip(seen[0], problem.sigma, seen[1], strict=True):
        yield cores(left[None], sigma[None], right[None])[0]


def _seen(problem: UpdateProblem, bases: BasisPair) -> tuple[Tensor, Tensor]:
    """Y_i^T L and Z_i^T R of every task."""
    updates = problem.updates
    return seen_by(updates, bases.left), seen_by(updates.flipped, bases.right)


def _cheapest(table: Tensor, problem: UpdateProblem) -> tuple[int, int]:
    """The (k_left, k_right) with the fewest numbers in the bases among those allowed."""
    n, d = problem.updates.left.shape[0], problem.updates.right.shape[0]
    # A direction costs n numbers on the left and d on the right.
    a = torch.arange(1, table.shape[0] + 1)[:, None] * n
    b = torch.arange(1, table.shape[1] + 1)[None] * d
    cost = torch.where(table, a + b, torch.iinfo(torch.int64).max)
    best = int(cost.argmin())
    return best // table.shape[1] + 1, best % table.shape[1] + 1


def _fulfils(problem: UpdateProblem, dimension: Dimension, bases: BasisPair) -> bool:
    """Whether the bases fulfil the rule, p included."""
    if dimension.error is None:
        allowed = (1 - (dimension.variance or 0.0)) * problem.total
        # The table adds the same squares in another order: without the slack, bases that are
        # enough would be refused for rounding, and larger ones tried for nothing.
        return problem.lost(bases) <= allowed + 1e-9 * problem.total + problem.dropped
    return bool((relative_errors(problem, bases) <= dimension.error + 1e-6).all())


def relative_errors(problem: UpdateProblem, bases: BasisPair) -> Tensor:
    """float64 [tasks]: |dW_i - projection| / |dW_i| after truncation to rank p; 0 for a zero."""
    left, right = _seen(problem, bases)
    inner = cores(left, problem.sigma, right)
    # Measured, because 1 - energy is a difference of squares, and an error can be asked for below
    # its floor.
    lost = errors(problem.updates, bases.left, bases.right, inner).square()
    if problem.p is not None:
        values = torch.linalg.svdvals(inner)
        lost = lost + values[:, problem.p :].square().sum(1)
    return lost.sqrt() / problem.updates.norms.clamp_min(torch.finfo(torch.float64).tiny)


def _check_reachable(problem: UpdateProblem, dimension: Dimension) -> None:
    """Refuse a p whose truncation alone costs more than the rule allows, whatever the bases are."""
    if problem.p is None:
        return
    sigma = problem.sigma.double()
    tail = sigma[:, problem.p :].square().sum(1)
    floor = (tail / sigma.square().sum(1).clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
    weighed = float((problem.weights.square() * tail).sum())
    # ``dropped``, or a p that is the rank of every task would be refused for rounding.
    too_much = (
        float(floor.max()) > dimension.error
        if dimension.error is not None
        else weighed > (1 - (dimension.variance or 0.0)) * problem.total + problem.dropped
    )
    if too_much:
        raise OptionError(
            f"p={problem.p}",
            f"truncation to rank p alone costs a relative error of up to {float(floor.max()):.3f}",
            "Use a larger p, or leave p out to keep every direction of the projection",
        )
