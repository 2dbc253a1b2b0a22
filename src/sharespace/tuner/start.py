"""What a task's coefficients and temporary directions are before training.

See docs/method.md, "Training forms".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.errors import OptionError, TaskNotFoundError
from sharespace.subspace.basis_method import dense_cores
from sharespace.subspace.coefficients import Coefficients
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import ShareModel

TEMPORARY_SCALE = 0.02
"""Norm of a column of beta' before training."""


@dataclass(frozen=True, eq=False)
class StartValues:
    """One module of one task, float32: dW = [beta, beta'] [E; e] C ([alpha, alpha'] [F; f])^T."""

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


def new_task(layer: LayerSubspace, p: int, phi: int, core: Tensor | None, seed: int) -> StartValues:
    """A task that has not been trained.

    Args:
        p: pseudo-rank; lowered to what k + phi leaves room for.
        phi: temporary directions a side; lowered to n - k_left and d - k_right.
        core: k_left x k_right that it starts from; None: dW = 0.
        seed: of the random start.
    """
    generator = torch.Generator().manual_seed(seed)
    new_left = complement(layer.left_basis, phi, generator) * TEMPORARY_SCALE
    new_right = complement(layer.right_basis, phi, generator)
    sides = (layer.k[0] + new_left.shape[1], layer.k[1] + new_right.shape[1])
    left, right = start(sides, min(p, *sides), core, generator)
    return StartValues(left, right, new_left.float(), new_right.float())


def new_core(layer: LayerSubspace, p: int, phi: int, core: Tensor | None, seed: int) -> StartValues:
    """A task that trains one core between p directions a side: p^2 numbers, not 2 k p.

    The directions are the bases' leading p - phi and phi temporary ones, random until
    ``place_directions`` chooses them; they are frozen.

    Args:
        p: directions a side; lowered to what k + phi leaves room for.
        phi: temporary ones among them, at most p; lowered to n - k_left and d - k_right.
        core: k_left x k_right that it starts from, as far as the chosen directions hold it; None:
            dW = 0.
        seed: of the random directions.

    Raises:
        OptionError: phi is more than p.
    """
    if phi > p:
        raise OptionError(f"phi={phi}", f"more than the p={p} directions of the core", "Lower it")
    generator = torch.Generator().manual_seed(seed)
    new_left = complement(layer.left_basis, phi, generator).float()
    new_right = complement(layer.right_basis, phi, generator).float()
    temporary = min(new_left.shape[1], new_right.shape[1])
    new_left, new_right = new_left[:, :temporary], new_right[:, :temporary]
    known = min(p - temporary, *layer.k)
    left, right = (_leading(k, known, temporary) for k in layer.k)
    start_core = torch.zeros(known + temporary, known + temporary)
    if core is not None:
        start_core[:known, :known] = core[:known, :known].float()
    return StartValues(left, right, new_left, new_right, start_core)


def _leading(k: int, known: int, temporary: int) -> Tensor:
    """(k + temporary) x (known + temporary): the first directions of the basis, then the rest."""
    columns = [*range(known), *range(k, k + temporary)]
    return torch.eye(k + temporary)[:, columns]


def start(
    sides: tuple[int, int], p: int, core: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """[E; e] and [F; f] before training: (k_left + phi) x p and (k_right + phi) x p.

    Without a core, E = e = 0 and [F; f] is random, orthogonal, with entries of unit scale (the
    paper's): the step of an optimizer such as Adam has the same size in every entry, so this is
    what makes it comparable to LoRA's. With all of them zero there would be no gradient. From a
    core, E and F are C's own split and e = 0; a column that C does not fill starts as without one.
    """
    right = _unit_scale(sides[1], p, generator)
    left = torch.zeros(sides[0], p)
    if core is not None and core.numel():
        u, s, vh = torch.linalg.svd(core.double(), full_matrices=False)
        # 1e-6: below it a float32 core has only rounding, whose directions mean nothing.
        filled = int((s[:p] > 1e-6 * s[0]).sum()) if s[0] > 0 else 0
        root = s[:filled].sqrt()
        left[: len(u), :filled] = (u[:, :filled] * root).float()
        right[:, :filled] = 0
        right[: vh.shape[1], :filled] = (vh[:filled].mT * root).float()
    return left, right


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


def starting_core(model: ShareModel, start: str, module: str) -> Tensor | None:
    """The core that a new task starts from: None (zero), the mean of the known tasks', or one's.

    Raises:
        TaskNotFoundError: ``start`` is neither "zero", "mean" nor a known task.
    """
    if start == "zero":
        return None
    if start != "mean" and start not in model.tasks:
        known = ", ".join(repr(n) for n in list(model.tasks)[:10]) or "none"
        raise TaskNotFoundError(
            f"start {start!r}", "neither 'zero', 'mean' nor a known task", f"Known tasks: {known}"
        )
    tasks = model.tasks.values() if start == "mean" else [model.tasks[start]]
    values = [t.coefficients[module] for t in tasks if module in t.coefficients]
    shared = [value for value in values if value.is_shared]
    return dense_cores(shared, model.layers[module]).mean(0) if shared else None
