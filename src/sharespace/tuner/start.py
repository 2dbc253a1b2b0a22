"""What a task's coefficients and temporary directions are before training.

See docs/method.md, "Training forms" and "Starts".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.errors import OptionError, TaskNotFoundError
from sharespace.subspace.adapter import ModuleShape
from sharespace.subspace.coefficients import Coefficients
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import ShareModel, Task

_FACTORS_P, _FACTORS_PHI = 8, 2
"""Pseudo-rank and temporary directions of a new task in the form "factors"; 8 is also the least
size of a new core."""

TEMPORARY_SCALE = 0.02
"""Norm of a column of beta' before training."""


@dataclass(frozen=True, eq=False)
class KnownUpdates:
    """The part of one module's update that comes from m known tasks: sum over j of a_j dW_j.

    float32, frozen but for the weights. Task j has the columns j r to (j + 1) r of both factors::

        dW_j = ([left_basis, left_outside] left)_j ([right_basis, right_outside] right)_j^T
    """

    left: Tensor
    """(k_left + t) x m r: coefficients in the left basis, and in what lies outside of it."""
    right: Tensor
    """(k_right + t) x m r."""
    left_outside: Tensor
    """n x t: left factors of updates that are stored per task."""
    right_outside: Tensor
    """d x t."""
    weights: Tensor
    """a_j, m numbers."""
    trained: bool = False
    """True: the weights are trained."""


@dataclass(frozen=True, eq=False)
class StartValues:
    """One module of one task, float32: dW = [beta, beta'] [E; e] C ([alpha, alpha'] [F; f])^T, on
    top of the updates of known tasks."""

    left_coefficients: Tensor
    """[E; e], (k_left + phi_left) x p."""
    right_coefficients: Tensor
    """[F; f], (k_right + phi_right) x p."""
    left_temporary: Tensor
    """beta', the temporary left directions: n x phi_left."""
    right_temporary: Tensor
    """alpha', the temporary right directions: d x phi_right."""
    core: Tensor | None = None
    """C, p x p, of the form "core"; None: the form "factors", C = I and not trained."""
    known: KnownUpdates | None = None
    """What it starts from; None: dW = 0."""


def known_task(layer: LayerSubspace, value: Coefficients, p: int | None, seed: int) -> StartValues:
    """A task as it is stored; an update stored per task becomes temporary directions, exactly.

    Args:
        p: pseudo-rank to train with; columns beyond the task's own start as in ``new_task``.

    Raises:
        OptionError: p is less than the task's own.
    """
    n, d = layer.shape.out_features, layer.shape.in_features
    if not value.is_shared:
        q = value.rank
        up, down = value.factors()
        left = torch.cat([torch.zeros(layer.k[0], q), torch.eye(q)])
        right = torch.cat([torch.zeros(layer.k[1], q), torch.eye(q)])
        return StartValues(left, right, up.float(), down.float())
    subspace = value.subspace_in(layer)
    core = value.own_core(subspace.k) if subspace is not None and p is None else None
    if core is not None and core.shape[0] == core.shape[1]:
        # Trained as it is stored: k^2 numbers, where its factors would be 2 k^2.
        left, right = (
            torch.eye(k)[:, offset : offset + len(core)]
            for k, offset in zip(layer.k, value.offset, strict=True)
        )
        return StartValues(left, right, torch.zeros(n, 0), torch.zeros(d, 0), core.float())
    left, right = (factor.float() for factor in value.factors())
    own = left.shape[1]
    if p is not None and p < own:
        raise OptionError(f"p={p}", f"the task has p={own}", "Leave p out, or give at least that")
    added = max((p or own) - own, 0)
    generator = torch.Generator().manual_seed(seed)
    new_columns = _unit_scale(layer.k[1], added, generator)
    left = torch.cat([left, torch.zeros(layer.k[0], new_columns.shape[1])], dim=1)
    right = torch.cat([right, new_columns], dim=1)
    return StartValues(left, right, torch.zeros(n, 0), torch.zeros(d, 0))


def default_p(shape: ModuleShape) -> int:
    """Directions a side of a new core: p x p is a twentieth of the n + d numbers times 8 of a LoRA
    of rank 8, and p is at least 8.

    17 on a width of 384, which the text stream was tuned to (experiments/text_stream); narrow
    layers would be left with cores too small to learn anything (experiments/images).

    Args:
        shape: of the module, n x d.
    """
    return max(_FACTORS_P, math.isqrt(round(8 * shape.sides / 20)))


def default_phi(layer: LayerSubspace, p: int) -> tuple[int, int]:
    """Temporary directions (left, right) of a new core: a third of p, as far as a side has room.

    Args:
        layer: the module's bases.
        p: directions a side of the core.
    """
    left, right = layer.shape.out_features - layer.k[0], layer.shape.in_features - layer.k[1]
    third = math.ceil(p / 3)
    return min(third, max(left, 0)), min(third, max(right, 0))


def new_task(layer: LayerSubspace, p: int | None, phi: int | None, seed: int) -> StartValues:
    """A task that has not been trained: E = e = 0, so that dW = 0.

    [F; f] is random, orthogonal, with entries of unit scale (the paper's): the step of an optimizer
    such as Adam has the same size in every entry, so this is what makes it comparable to LoRA's.
    With all of them zero there would be no gradient.

    Args:
        layer: the module's bases.
        p: pseudo-rank; lowered to what k + phi leaves room for. None: 8.
        phi: temporary directions a side; lowered to n - k_left and d - k_right. None: 2.
        seed: of the random start.
    """
    p = _FACTORS_P if p is None else p
    phi = _FACTORS_PHI if phi is None else phi
    generator = torch.Generator().manual_seed(seed)
    new_left = complement(layer.left_basis, phi, generator) * TEMPORARY_SCALE
    new_right = complement(layer.right_basis, phi, generator)
    sides = (layer.k[0] + new_left.shape[1], layer.k[1] + new_right.shape[1])
    p = min(p, *sides)
    right = _unit_scale(sides[1], p, generator)
    return StartValues(torch.zeros(sides[0], p), right, new_left.float(), new_right.float())


def new_core(layer: LayerSubspace, p: int | None, phi: int | None, seed: int) -> StartValues:
    """A task that trains one core between p directions a side: p^2 numbers, not 2 k p.

    The directions are the bases' leading p - phi and phi temporary ones, random until
    ``place_directions`` chooses them; they are frozen. C = 0, so that dW = 0.

    Args:
        layer: the module's bases.
        p: directions a side; lowered to what k + phi leaves room for. None: ``default_p``.
        phi: temporary ones among them on each side, at most p; lowered to n - k_left and
            d - k_right, whichever is less. None: ``default_phi``, for each side by itself.
        seed: of the random directions.

    Raises:
        OptionError: phi is more than p.
    """
    p = default_p(layer.shape) if p is None else p
    if phi is not None and phi > p:
        raise OptionError(f"phi={phi}", f"more than the p={p} directions of the core", "Lower it")
    wanted = default_phi(layer, p) if phi is None else (phi, phi)
    generator = torch.Generator().manual_seed(seed)
    new_left = complement(layer.left_basis, wanted[0], generator).float()
    new_right = complement(layer.right_basis, wanted[1], generator).float()
    temporary = [new_left.shape[1], new_right.shape[1]]
    if phi is not None:
        temporary = [min(temporary)] * 2
    p = min(p, *(k + count for k, count in zip(layer.k, temporary, strict=True)))
    temporary = [min(count, p) for count in temporary]
    left, right = (
        _leading(k, p - count, count) for k, count in zip(layer.k, temporary, strict=True)
    )
    new_left, new_right = new_left[:, : temporary[0]], new_right[:, : temporary[1]]
    return StartValues(left, right, new_left, new_right, torch.zeros(p, p))


def _leading(k: int, known: int, temporary: int) -> Tensor:
    """(k + temporary) x (known + temporary): the first directions of the basis, then the rest."""
    columns = [*range(known), *range(k, k + temporary)]
    return torch.eye(k + temporary)[:, columns]


def _unit_scale(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Orthogonal columns whose entries have a root mean square of 1."""
    drawn = torch.randn(rows, columns, generator=generator)
    q: Tensor = torch.linalg.qr(drawn)[0]
    return math.sqrt(rows) * q


def complement(basis: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal directions orthogonal to a basis: n x min(count, n - k), float64.

    No column is left where the subspaces of many groups of tasks have n directions together.
    """
    n, k = basis.shape
    draw = torch.randn(n, max(min(count, n - k), 0), generator=generator).double()
    # A basis stored in 16 bits is not orthonormal to rounding: its own Q is.
    known = torch.linalg.qr(basis.cpu().double())[0]
    # Twice, as one pass leaves what rounding put back into the basis.
    for _ in range(2):
        draw = torch.linalg.qr(draw - known @ (known.mT @ draw))[0]
    return draw


def start_weights(model: ShareModel, start: str, mixture: Sequence[str] = ()) -> dict[str, float]:
    """Known task -> weight with which a new task starts from it; empty: from nothing.

    Args:
        model: has the known tasks.
        start: "zero", "mean" (of all known tasks, each with 1 / T), or a known task (with 1).
        mixture: known tasks whose weights are trained; those that the start does not name begin
            with 0.

    Raises:
        TaskNotFoundError: ``start`` is neither "zero", "mean" nor a known task, or a task of the
            mixture is not known.
        OptionError: the mixture leaves out a task that the start names.
    """
    if start == "mean":
        weights = dict.fromkeys(model.tasks, 1 / max(len(model.tasks), 1))
    else:
        weights = {} if start == "zero" else {start: 1.0}
    for name in (*weights, *mixture):
        if name not in model.tasks:
            known = ", ".join(repr(n) for n in list(model.tasks)[:10]) or "none"
            raise TaskNotFoundError(
                f"start {name!r}",
                "neither 'zero', 'mean' nor a known task",
                f"Known tasks: {known}",
            )
    left_out = [name for name in weights if mixture and name not in mixture]
    if left_out:
        raise OptionError(
            f"known={list(mixture)}",
            f"the task starts from {left_out[0]!r}, which is not among them",
            "Add it, or choose another start",
        )
    return {**dict.fromkeys(mixture, 0.0), **weights}


def known_updates(
    layer: LayerSubspace,
    tasks: Sequence[Task],
    module: str,
    weights: Mapping[str, float],
    *,
    trained: bool,
) -> KnownUpdates | None:
    """The known tasks' part of a new task's update of one module; None: they do not adapt it.

    Weights that are not trained are multiplied in, and the sum is one update (m = 1): the mean of
    hundreds of tasks has no larger rank than the bases have directions.

    Args:
        layer: the module's bases.
        tasks: known tasks, stored in whatever way; one that does not adapt the module counts as 0.
        module: path of the module.
        weights: task -> weight that it begins with.
        trained: True: the weights are trained, one a task.
    """
    values = [(weights[task.name], task.coefficients.get(module)) for task in tasks]
    if trained:
        numbers = [weight for weight, _ in values]
        sums = [_weighed_sum(layer, [(1.0, value)]) for _, value in values]
    else:
        numbers, sums = [1.0], [_weighed_sum(layer, values)]
    columns = max((one.rank for one in sums), default=0)
    if not columns:
        return None
    outside = sum(one.outside[0].shape[1] for one in sums)
    left, right = (torch.zeros(k + outside, len(sums) * columns) for k in layer.k)
    before = 0
    for j, one in enumerate(sums):
        inside, own = one.inside[0].shape[1], one.outside[0].shape[1]
        start = j * columns
        for factor, coordinates, k in zip((left, right), one.inside, layer.k, strict=True):
            factor[:k, start : start + inside] = coordinates.float()
            rows = slice(k + before, k + before + own)
            factor[rows, start + inside : start + inside + own] = torch.eye(own)
        before += own
    return KnownUpdates(
        left,
        right,
        torch.cat([one.outside[0] for one in sums], dim=1).float(),
        torch.cat([one.outside[1] for one in sums], dim=1).float(),
        torch.tensor(numbers),
        trained,
    )


@dataclass(frozen=True, eq=False)
class _SplitUpdate:
    """An update in two parts, float64: E F^T between the bases, and P Q^T outside of them."""

    inside: tuple[Tensor, Tensor]
    outside: tuple[Tensor, Tensor]

    @property
    def rank(self) -> int:
        """Columns of both parts."""
        return self.inside[0].shape[1] + self.outside[0].shape[1]


def _weighed_sum(
    layer: LayerSubspace, values: Sequence[tuple[float, Coefficients | None]]
) -> _SplitUpdate:
    present = [(weight, value) for weight, value in values if value is not None]
    inside = [(a, *value.factors()) for a, value in present if value.is_shared]
    outside = [(a, *value.factors()) for a, value in present if not value.is_shared]
    n, d = layer.shape.out_features, layer.shape.in_features
    return _SplitUpdate(_side_by_side(inside, layer.k), _side_by_side(outside, (n, d)))


def _side_by_side(
    parts: Sequence[tuple[float, Tensor, Tensor]], rows: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Two factors of the weighed sum of products, of no more columns than its smaller side."""
    lefts = [weight * left.double().cpu() for weight, left, _ in parts]
    rights = [right.double().cpu() for _, _, right in parts]
    none_left, none_right = (torch.zeros(count, 0, dtype=torch.float64) for count in rows)
    left, right = torch.cat([none_left, *lefts], dim=1), torch.cat([none_right, *rights], dim=1)
    if left.shape[1] <= min(rows):
        return left, right
    u, s, vh = torch.linalg.svd(left @ right.mT, full_matrices=False)
    return u * s, vh.mT
