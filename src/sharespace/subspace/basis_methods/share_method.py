"""Method ``share``: the paper's bases, an SVD of the stacked LoRA factors on each side alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sharespace.linalg.dimension import Dimension
from sharespace.linalg.factor_svd import factor_bases
from sharespace.linalg.frames import FramedTasks, errors
from sharespace.linalg.problem import BasisPair
from sharespace.subspace.basis_method import BasisMethod, LayerTasks
from sharespace.subspace.basis_methods import register
from sharespace.subspace.coefficients import Coefficients, compact
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.project import Projection, dense_cores, frame_turns


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
