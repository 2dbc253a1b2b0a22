"""What a basis method is: how bases are found from a layer's tasks, and what it allows.

Everything else (reading, certificates, ledgers, exact merges below a cap, storing, exporting) is
common to all methods. A method is one class under ``sharespace.subspace.basis_methods.register``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sharespace.errors import OptionError
from sharespace.linalg.dimension import Dimension
from sharespace.linalg.frames import FramedTasks
from sharespace.linalg.problem import BasisPair, UpdateProblem
from sharespace.subspace.coefficients import Coefficients
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.project import Projection, express, project


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
