"""What a basis method is: how bases are found from a layer's tasks, and tasks expressed in them.

Everything else (reading, certificates, ledgers, exact merges below a cap, storing, exporting) is
common to all methods. A method is one class under ``sharespace.subspace.basis_methods.register``;
``project`` and ``express`` are what it does with the tasks unless it says otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sharespace.errors import OptionError
from sharespace.linalg.dimension import Dimension
from sharespace.linalg.frames import FactoredFrame, FramedTasks, FrameSplit, split_errors
from sharespace.linalg.problem import BasisPair, UpdateProblem
from sharespace.linalg.updates import CanonicalUpdates, core_factors, seen_by
from sharespace.subspace.coefficients import Coefficients, compact
from sharespace.subspace.layer import LayerSubspace


@dataclass(frozen=True, eq=False)
class LayerTasks:
    """All that a method sees of one layer: at a build its adapters, at a merge all tasks' cores.

    At a merge the updates are matrices in the coordinates of common frames, n and d are the
    frames' columns, and so are the bases that are asked for.
    """

    problem: UpdateProblem
    """The updates dW_i in canonical form, their weights, the pseudo-rank p and the seed."""
    factors: Sequence[tuple[Tensor, Tensor]] = ()
    """(scaling B_i, A_i^T), n x r_i and d x r_i, of each task; only with ``needs_factors``."""
    centred: bool = False
    """Asked for by the user; only with ``can_centre``."""


class BasisMethod(ABC):
    """How the bases of a layer are found, and how its tasks are expressed in them."""

    name: ClassVar[str]
    """What users call the method; set by ``register``."""
    paper: ClassVar[str]
    """Address of the paper that describes it; set by ``register``."""
    rules: ClassVar[frozenset[str]] = frozenset({"k"})
    """Fields of ``Dimension`` by which k may be chosen: "k", "variance", "error", "budget". All but
    "k" and "budget" ask ``smallest_bases``; a budget is allocated alike for all methods."""
    needs_factors: ClassVar[bool] = False
    """The adapters' factors are read, too; they are kept in memory for all tasks of a layer."""
    can_centre: ClassVar[bool] = False
    """Whether the method can subtract the mean column (``BuildSettings.centred``)."""
    builds_new_layers: ClassVar[bool] = False
    """A module that no known task adapts is built from the newcomers by this method; otherwise it
    grows from nothing by the directions that they need, which loses nothing below the cap."""
    in_memory_because: ClassVar[str] = ""
    """A reason, for the error message, why a layer cannot be built out of core. Empty where it can:
    then ``bases`` must only look at the problem, which holds the tasks compressed to the directions
    that matter."""

    @abstractmethod
    def bases(self, tasks: LayerTasks, k: tuple[int, int]) -> BasisPair:
        """At most k (left, right) directions: at a build with a fixed k, at a merge at the cap.

        Args:
            tasks: the weighed updates of the layer and, for methods that need them, the factors.
            k: most directions (left, right).

        Returns:
            Bases with orthonormal columns, n x k_left and d x k_right, the most important first.
        """

    def smallest_bases(self, tasks: LayerTasks, dimension: Dimension) -> BasisPair:
        """As few directions as a rule other than k needs; for methods that have such rules.

        Args:
            tasks: as in ``bases``.
            dimension: the rule: ``variance`` or ``error`` is given.

        Raises:
            OptionError: the rule cannot be fulfilled, or the method has none but k.
        """
        raise OptionError(f"method {self.name!r}", "it has no rule but k", "Give k")

    def project(self, tasks: LayerTasks, layer: LayerSubspace) -> Projection:
        """Each task in the stored bases at a build: least squares, truncated to rank p.

        Args:
            tasks: as in ``bases``.
            layer: the bases as they are stored, rounding included.
        """
        return project(tasks.problem.updates, layer, tasks.problem.p)

    def express(
        self, framed: FramedTasks, layer: LayerSubspace, p: int | None
    ) -> tuple[Coefficients, ...]:
        """Each task in the stored bases at a merge, from its core in common frames.

        Args:
            framed: the tasks' cores between common orthonormal frames.
            layer: the new bases as they are stored.
            p: pseudo-rank; None keeps the whole core.
        """
        return express(framed, layer, p)

    def check_rule(self, dimension: Dimension) -> None:
        """Refuse a rule that the method does not have.

        Args:
            dimension: how k is chosen.

        Raises:
            OptionError: see above.
        """
        for rule in ("k", "variance", "error", "budget"):
            if getattr(dimension, rule) is not None and rule not in self.rules:
                raise OptionError(
                    f"method {self.name!r}",
                    f"it has no rule {rule!r}",
                    f"Use {' or '.join(sorted(self.rules))}",
                )


@dataclass(frozen=True, eq=False)
class Projection:
    """Tasks in a layer's coordinates, and what that lost."""

    coefficients: tuple[Coefficients, ...]
    lost: Tensor
    """float64 [tasks]: |dW_i - stored|, casts included."""
    outside: Tensor | None = None
    """float64 [2, tasks]: energy of dW_i outside the stored left basis, and the right one."""


def project(updates: CanonicalUpdates, layer: LayerSubspace, p: int | None = None) -> Projection:
    """The best coefficients of each task in the stored bases.

    Args:
        updates: the tasks' updates to this module.
        layer: the subspace; its bases may be in 16 bits, the coefficients then make up for what
            the cast did to them as far as they can (least squares in the stored frame).
        p: pseudo-rank; None: min(k, r_i), which loses nothing more than the projection.
    """
    dtype, device = updates.left.dtype, updates.left.device
    left, right = layer.left_basis.to(device), layer.right_basis.to(device)
    frames = FactoredFrame.of(left, dtype), FactoredFrame.of(right, dtype)
    coefficients: list[Coefficients] = []
    lost, outside = [], []
    turns = [f.r @ t.to(f.r) for f, t in zip(frames, frame_turns(layer), strict=True)]
    for _, part in updates.slices():
        splits = frames[0].split(part), frames[1].split(part.flipped)
        left_seen, right_seen = (s.inside @ t for s, t in zip(splits, turns, strict=True))
        sliced = coefficients_of(left_seen, part, right_seen, layer, p)
        cores = dense_cores(sliced, layer).to(device)
        coefficients += sliced
        lost.append(split_errors(part, frames, splits, cores))
        outside.append(torch.stack([_energies(part, split) for split in splits]))
    return Projection(tuple(coefficients), torch.cat(lost).cpu(), torch.cat(outside, dim=1).cpu())


def _energies(updates: CanonicalUpdates, split: FrameSplit) -> Tensor:
    """float64 [tasks]: energy outside of the frame that split them."""
    square = updates.blocks(updates.sigma.double().square())
    return (square * split.outside.diagonal(dim1=1, dim2=2)).sum(1)


def express(
    framed: FramedTasks, layer: LayerSubspace, p: int | None = None
) -> tuple[Coefficients, ...]:
    """Coefficients of tasks that are known in frames, in a layer's stored bases."""
    left = framed.left.mT @ layer.left_basis.to(framed.left)
    right = framed.right.mT @ layer.right_basis.to(framed.right)
    coefficients: list[Coefficients] = []
    turned = [m @ t.to(m) for m, t in zip((left, right), frame_turns(layer), strict=True)]
    for _, part in framed.core.slices():
        core = part.double()
        in_left, in_right = seen_by(core, turned[0]), seen_by(core.flipped, turned[1])
        coefficients += coefficients_of(in_left, core, in_right, layer, p)
    return tuple(coefficients)


def frame_turns(layer: LayerSubspace) -> tuple[Tensor, Tensor]:
    """Inverses of the inner products of the stored bases' columns, float64: the identity but for
    their cast. They turn inner products with a basis into coordinates in it (least squares)."""
    left, right = layer.left_basis.double(), layer.right_basis.double()
    return torch.linalg.inv(left.mT @ left), torch.linalg.inv(right.mT @ right)


def coefficients_of(
    left: Tensor, updates: CanonicalUpdates, right: Tensor, layer: LayerSubspace, p: int | None
) -> tuple[Coefficients, ...]:
    """Coefficients from each task's directions in coordinates of the stored bases (tasks x r x k,
    each side): what these see of them, turned by ``frame_turns``."""
    sigma = updates.blocks(updates.sigma)
    e, f = core_factors(left, sigma, right, p)
    e, f = e.cpu(), f.cpu()
    dtype = layer.left_basis.dtype
    if min(e.shape[1], f.shape[1]) > e.shape[2]:  # all at once: a cast for each costs more
        e, f = e.to(dtype), f.to(dtype)
    return tuple(compact(e[i, :, :r], f[i, :, :r], dtype) for i, r in enumerate(updates.ranks))


def factor_rows(
    coefficients: Sequence[Coefficients], layer: LayerSubspace
) -> tuple[Tensor, Tensor]:
    """The stored E^T and F^T, float64 [tasks, p, k_left] and [tasks, p, k_right], with zeros where
    a p is smaller than the largest; a core is C and 1, an update stored per task nothing."""
    pairs = [value.exact_factors(layer.k) for value in coefficients]
    shapes = {(e.shape, f.shape) for e, f in pairs}
    if len(shapes) == 1:
        left, right = (torch.stack(side).mT.double() for side in zip(*pairs, strict=True))
        return left.contiguous(), right.contiguous()
    p = max((e.shape[1] for e, _ in pairs), default=0)
    wide = [torch.zeros(len(pairs), p, k, dtype=torch.float64) for k in layer.k]
    for i, pair in enumerate(pairs):
        for target, part in zip(wide, pair, strict=True):
            target[i, : part.shape[1]] = part.mT
    return wide[0], wide[1]


def dense_cores(coefficients: Sequence[Coefficients], layer: LayerSubspace) -> Tensor:
    """The stored cores, float64 [tasks, k_left, k_right]; zero for one stored per task."""
    result = torch.zeros(len(coefficients), *layer.k, dtype=torch.float64)
    for core, value in zip(result, coefficients, strict=True):
        value.add_core_to(core)
    return result
