"""Method ``joint``: bases of all weighed updates together, by HOSVD and HOOI."""

from __future__ import annotations

from sharespace.linalg.dimension import Dimension, smallest_bases
from sharespace.linalg.joint import joint
from sharespace.linalg.problem import BasisPair
from sharespace.subspace.basis_method import BasisMethod, LayerTasks
from sharespace.subspace.basis_methods import register


@register("joint", paper="https://doi.org/10.1137/S0895479898346995")
class JointMethod(BasisMethod):
    """The pair of bases that keeps most of all tasks' weighed updates (docs/method.md).

    It sees updates only, so that the split of an update between B and A does not matter.
    """

    rules = frozenset({"k", "variance", "error", "budget"})

    def bases(self, tasks: LayerTasks, k: tuple[int, int]) -> BasisPair:
        return joint(tasks.problem, k)

    def smallest_bases(self, tasks: LayerTasks, dimension: Dimension) -> BasisPair:
        return smallest_bases(tasks.problem, dimension)
