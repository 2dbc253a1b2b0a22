"""Method ``share``: the paper's bases, an SVD of the stacked LoRA factors on each side alone.

The paper's step 1 (arXiv 2602.06043; docs/method.md, "Method share"), for reproduction and
comparison: the bases depend on how an update happens to be split between B and A, and on the
adapters' norms; those of ``joint`` do not. They differ from the paper's in one thing: where columns
are centred, the mean is kept as one of the k directions, because without it no adapter can be
reconstructed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sharespace.linalg.dimension import Dimension
from sharespace.linalg.frames import FramedTasks, errors
from sharespace.linalg.precision import compute_dtype, tolerance
from sharespace.linalg.problem import BasisPair
from sharespace.linalg.truncated import leading, orthonormal
from sharespace.linalg.updates import CanonicalUpdates
from sharespace.subspace.basis_method import (
    BasisMethod,
    LayerTasks,
    Projection,
    dense_cores,
    frame_turns,
)
from sharespace.subspace.basis_methods import register
from sharespace.subspace.coefficients import Coefficients, compact
from sharespace.subspace.layer import LayerSubspace


@register("share", paper="https://arxiv.org/abs/2602.06043")
class PaperMethod(BasisMethod):
    """Steps 1 and 3 as the paper has them, for reproduction and comparison.

    The factors B_i and A_i^T are expressed each in its basis, so that a later merge finds the same
    split of an update as before; with a pseudo-rank they are split anew.
    """

    rules = frozenset({"k", "variance"})
    needs_factors = True
    can_centre = True
    builds_new_layers = True
    in_memory_because = "method 'share' needs the factors of all adapters at once"

    def bases(self, tasks: LayerTasks, k: tuple[int, int]) -> BasisPair:
        return factor_bases(list(tasks.factors), k, centred=tasks.centred, seed=tasks.problem.seed)

    def smallest_bases(self, tasks: LayerTasks, dimension: Dimension) -> BasisPair:
        return factor_bases(
            list(tasks.factors),
            None,
            variance=dimension.variance,
            centred=tasks.centred,
            seed=tasks.problem.seed,
        )

    def project(self, tasks: LayerTasks, layer: LayerSubspace) -> Projection:
        """The same updates as the default gives; but a later merge depends on their split."""
        updates = tasks.problem.updates
        if tasks.problem.p is not None:
            return super().project(tasks, layer)
        device = updates.left.device
        left, right = layer.left_basis.to(device), layer.right_basis.to(device)
        seen = [
            (up.double().mT @ left.double(), down.double().mT @ right.double())
            for up, down in tasks.factors
        ]
        coefficients = _split(seen, layer)
        cores = dense_cores(coefficients, layer).to(device)
        return Projection(coefficients, errors(updates, left, right, cores).cpu())

    def express(
        self, framed: FramedTasks, layer: LayerSubspace, p: int | None
    ) -> tuple[Coefficients, ...]:
        if p is not None:
            return super().express(framed, layer, p)
        left = framed.left.mT @ layer.left_basis.to(framed.left)
        right = framed.right.mT @ layer.right_basis.to(framed.right)
        return _split([(e.mT @ left, f.mT @ right) for e, f in framed.factors], layer)


def _split(seen: Sequence[tuple[Tensor, Tensor]], layer: LayerSubspace) -> tuple[Coefficients, ...]:
    """Coefficients from what the stored bases see of each factor (r x k_left, r x k_right)."""
    turns = frame_turns(layer)
    return tuple(
        compact(
            (left.double() @ turns[0].to(left.device)).mT.cpu(),
            (right.double() @ turns[1].to(right.device)).mT.cpu(),
            layer.left_basis.dtype,
        )
        for left, right in seen
    )


def factor_bases(
    pairs: list[tuple[Tensor, Tensor]],
    k: tuple[int, int] | None,
    *,
    variance: float | None = None,
    centred: bool = False,
    seed: int = 0,
) -> BasisPair:
    """Leading left singular vectors of [s_1 B_1 ... s_T B_T] and of [A_1^T ... A_T^T].

    Args:
        pairs: for each task (s_i B_i, n x r_i) and (A_i^T, d x r_i).
        k: (k_left, k_right); None: as ``variance`` needs.
        variance: explained variance of each side alone (the paper's rule, at least 0.6 there).
        centred: subtract the mean column; it is then kept as the first of the k directions.
        seed: of the randomised range finder.
    """
    # Without weights and without a canonical form, as in the paper: both are what ``joint`` adds.
    sides = [torch.cat([pair[side] for pair in pairs], dim=1) for side in (0, 1)]
    caps = k or (None, None)
    bases = [_side(s, c, variance, centred, seed) for s, c in zip(sides, caps, strict=True)]
    return BasisPair(bases[0], bases[1])


def _side(stack: Tensor, k: int | None, variance: float | None, centred: bool, seed: int) -> Tensor:
    """One basis: the leading left singular vectors of a stack of columns, n x c."""
    stack = stack.to(compute_dtype(stack.dtype))
    # By a power of two, which rounds nothing: squares of what is far from 1 under- or overflow.
    largest = float(stack.abs().amax()) if stack.numel() else 0.0
    stack = torch.ldexp(stack, torch.tensor(-math.frexp(largest)[1], device=stack.device))
    columns = stack.shape[1]
    mean = stack.mean(dim=1, keepdim=True)
    # A mean of zero has no direction: nothing is centred then.
    centre = mean if centred and bool(mean.norm() > 0) else mean[:, :0]
    rest = stack - mean if centre.shape[1] else stack
    limit = min(rest.shape) if k is None else max(k - centre.shape[1], 0)
    # ``leading`` takes tasks; the stack is one task whose directions are its columns.
    one_task = CanonicalUpdates(rest, torch.ones(columns).to(rest), rest[:0], (columns,))
    directions = leading(
        one_task,
        torch.eye(columns).to(rest)[None],
        limit,
        # Rounding of an average column, of the stack as it was before the mean was taken off.
        dropped=tolerance(rest.dtype) ** 2 * float(stack.square().sum()) / columns,
        generator=torch.Generator().manual_seed(seed),
    )
    keep = _explained(directions.energies, variance, float(rest.double().square().sum()))
    basis = directions.basis[:, :keep].to(stack.dtype)
    # The mean first, whose direction QR keeps; the others become orthogonal to it.
    return orthonormal(torch.cat([centre, basis], dim=1)) if centre.shape[1] else basis


def _explained(energies: Tensor, variance: float | None, total: float) -> int:
    """How many of the directions explain so much of the total energy."""
    if variance is None or variance == 1.0:
        return len(energies)
    return min(int((energies.cumsum(0) < variance * total).sum()) + 1, len(energies))
