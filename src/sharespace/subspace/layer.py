"""One layer's subspace: two bases that all tasks share, or those of several groups of tasks.

Where a layer has groups, their bases stand side by side in one matrix a side. A group is named by
its offset, the (left, right) number of directions before its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from sharespace.subspace.adapter import ModuleShape


@dataclass(frozen=True)
class Certificate:
    """An upper bound on a layer's weighed error, known from energies alone.

    All three are sums of squares, with every task of weight 1 / |dW_i| (so a task whose update
    is lost entirely counts 1): docs/method.md, "Certificate".
    """

    discarded_left: float
    """Energy of the weighed updates outside the left basis."""
    discarded_right: float
    """Energy of the weighed updates outside the right basis."""
    rank_tail: float
    """Energy of the cores beyond the pseudo-rank p."""

    @property
    def bound(self) -> float:
        """Root of the sum: the weighed error of all tasks together is at most this."""
        return math.sqrt(self.discarded_left + self.discarded_right + self.rank_tail)


@dataclass(frozen=True, eq=False)
class LayerSubspace:
    """The subspace of one adapted module, common to all tasks; or one for each group of tasks."""

    shape: ModuleShape
    left_basis: Tensor
    """n x k_left, orthonormal columns (to the rounding of its dtype). With ``groups``: their bases
    side by side; only the columns of one group are orthonormal."""
    right_basis: Tensor
    """The right basis, d x k_right, with orthonormal columns as well."""
    cap: tuple[int, int] | None = None
    """Largest (k_left, k_right) that a merge may grow to; None: as many as needed."""
    certificate: Certificate | None = None
    """Certificate of the build or of the last merge that truncated; None where there was none."""
    streamed: bool = False
    """Adapters came into it out of core, because they did not fit in the memory given."""
    groups: tuple[tuple[int, int], ...] = ()
    """(left, right) directions of each group's subspace, in order, k in sum; none: there is one
    subspace for all tasks."""

    @classmethod
    def empty(
        cls, shape: ModuleShape, dtype: torch.dtype, cap: tuple[int, int] | None = None
    ) -> LayerSubspace:
        """A layer without any direction.

        Args:
            shape: shape of the module.
            dtype: stored dtype of the bases.
            cap: most directions (left, right) that merges may grow it to; None: as many as needed.
        """
        left = torch.zeros(shape.out_features, 0, dtype=dtype)
        return cls(shape, left, torch.zeros(shape.in_features, 0, dtype=dtype), cap)

    @property
    def k(self) -> tuple[int, int]:
        """Directions of the left and of the right basis: (k_left, k_right)."""
        return self.left_basis.shape[1], self.right_basis.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of both bases as they are stored."""
        return tensor_bytes(self.left_basis, self.right_basis)

    def subspaces(self) -> list[LayerSubspace]:
        """Each of the layer's subspaces as a layer of its own."""
        if not self.groups:
            return [self]
        offsets = group_offsets(self.groups)
        return [self.subspace_at(o, k) for o, k in zip(offsets, self.groups, strict=True)]

    def subspace_at(self, offset: tuple[int, int], k: tuple[int, int]) -> LayerSubspace:
        """The layer with k (left, right) of its directions, from the offset on.

        Args:
            offset: directions (left, right) before it.
            k: its number of directions (left, right).
        """
        left, right = (slice(o, o + size) for o, size in zip(offset, k, strict=True))
        bases = self.left_basis[:, left], self.right_basis[:, right]
        return replace(self, left_basis=bases[0], right_basis=bases[1], groups=())

    def cast(self, dtype: torch.dtype) -> LayerSubspace:
        """The same bases in another dtype.

        Args:
            dtype: floating-point dtype of the result.
        """
        left, right = self.left_basis.to(dtype), self.right_basis.to(dtype)
        return replace(self, left_basis=left, right_basis=right)


class LayerDimensions(Protocol):
    """What is asked of a layer, whether its bases were read or it only stands in a manifest."""

    @property
    def shape(self) -> ModuleShape: ...

    @property
    def k(self) -> tuple[int, int]: ...

    @property
    def groups(self) -> tuple[tuple[int, int], ...]: ...


def side_by_side(subspaces: Sequence[LayerSubspace]) -> LayerSubspace:
    """One layer of several subspaces, without a cap and a certificate.

    Args:
        subspaces: of one module, at least one; those without directions are no group.
    """
    sizes = [subspace.k for subspace in subspaces if subspace.k != (0, 0)]
    return LayerSubspace(
        shape=subspaces[0].shape,
        left_basis=torch.cat([subspace.left_basis for subspace in subspaces], dim=1),
        right_basis=torch.cat([subspace.right_basis for subspace in subspaces], dim=1),
        groups=tuple(sizes) if len(sizes) > 1 else (),
    )


def group_offsets(groups: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Directions (left, right) before each group."""
    offsets = [(0, 0)]
    for left, right in groups[:-1]:
        offsets.append((offsets[-1][0] + left, offsets[-1][1] + right))
    return offsets


def group_size(layer: LayerDimensions, offset: tuple[int, int]) -> tuple[int, int] | None:
    """Directions (left, right) of the group that begins there; None where none does."""
    groups = layer.groups or (layer.k,)
    offsets = group_offsets(groups)
    return groups[offsets.index(offset)] if offset in offsets else None


def tensor_bytes(*tensors: Tensor) -> int:
    """Bytes of the tensors in the dtype they are stored in."""
    return sum(t.numel() * t.element_size() for t in tensors)
