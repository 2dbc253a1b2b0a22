"""How a task's update to one module is stored: three kinds that answer for themselves.

``Factors`` and ``Core`` are coordinates in the layer's subspace; ``PerTask`` is an update outside
of it, by its own SVD. All other code asks through ``Coefficients`` and need not know the kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from sharespace.errors import MismatchError
from sharespace.linalg.precision import compute_dtype
from sharespace.subspace.adapter import LayerUpdate, ModuleShape
from sharespace.subspace.layer import (
    LayerDimensions,
    LayerSubspace,
    group_size,
    tensor_bytes,
)

CoefficientPair = tuple[Tensor, Tensor]
"""(E, F), k_left x p and k_right x p; of an update stored per task its factors, n x q and d x q."""


class Coefficients(ABC):
    """A task's update to one module as it is stored: left @ right.T in some coordinates."""

    keys: ClassVar[tuple[str, ...]]
    """Last components of its tensors' keys in a task's file (docs/format.md)."""
    is_shared: ClassVar[bool]
    """True: in coordinates of the layer's subspace. False: in those of the module itself."""
    offset: tuple[int, int]
    """Directions (left, right) of other groups before those that it uses: zero rows (of a core also
    columns) that are not stored."""

    @classmethod
    @abstractmethod
    def from_stored(
        cls, tensors: Mapping[str, Tensor], k: tuple[int, int], offset: tuple[int, int]
    ) -> Coefficients:
        """The coefficients from what ``stored_tensors`` gave, as a copy; zeros around them, to k.

        Tensors that are too large for k stay so, and ``misfit`` refuses them.

        Args:
            tensors: what was written, by the last component of its key (``keys``).
            k: directions (left, right) of the whole layer.
            offset: directions (left, right) before those that are stored.
        """

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """All its tensors, zero rows included, in the order of ``keys``."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """Columns of ``factors``: the rank of the update as it is stored."""

    @property
    @abstractmethod
    def used(self) -> tuple[int, int]:
        """Directions (left, right) of the subspace that it uses, from its offset on."""

    @abstractmethod
    def stored_tensors(self) -> dict[str, Tensor]:
        """What is written to a file, by its key: without the zeros around what is used."""

    @abstractmethod
    def factors(self) -> CoefficientPair:
        """Two factors of the update with ``rank`` columns, in its own coordinates."""

    @abstractmethod
    def misfit(self, layer: LayerDimensions, dtype: torch.dtype) -> str:
        """Why it does not fit the layer of a model in this dtype; empty where it does.

        Args:
            layer: the shape, the dimension and the groups that it must fit.
            dtype: stored dtype of the model.
        """

    @abstractmethod
    def with_factors(
        self, module: str, pair: CoefficientPair, layer: LayerSubspace, dtype: torch.dtype
    ) -> Coefficients:
        """The same task's update with other factors, as a model of this dtype stores it.

        Args:
            module: path of the module, for the error.
            pair: (E, F), k_left x p and k_right x p; of an update stored per task n x q and d x q.
            layer: the module's bases.
            dtype: stored dtype of the model.

        Raises:
            MismatchError: the pair does not fit the module's bases.
        """

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors as they are stored."""
        return tensor_bytes(*self.stored_tensors().values())

    @property
    def numbers(self) -> int:
        """Numbers of all its tensors: those that a training of them would train."""
        return sum(tensor.numel() for tensor in self.tensors)

    @abstractmethod
    def add_core_to(self, core: Tensor) -> None:
        """Write its core into zeros, k_left x k_right; what is stored per task has none.

        Args:
            core: float64 zeros, k_left x k_right, changed in place.
        """

    def core(self, k: tuple[int, int]) -> Tensor:
        """Its core in the layer's k directions, float64 k_left x k_right.

        Args:
            k: directions (left, right) of the whole layer.
        """
        core = torch.zeros(k, dtype=torch.float64)
        self.add_core_to(core)
        return core

    def own_core(self, k: tuple[int, int]) -> Tensor | None:
        """The core of its own k directions where it is stored as one; None for factors.

        Args:
            k: directions (left, right) of its own group.
        """
        return None

    @abstractmethod
    def exact_factors(self, k: tuple[int, int]) -> CoefficientPair:
        """Two factors of its core in k directions without any rounding: a core is C and 1.

        Args:
            k: directions (left, right) of the whole layer.
        """

    def framed(self, layer: LayerSubspace) -> tuple[Tensor, Tensor, Tensor]:
        """Left and right basis, and float64 [1, a, b] the core between them, of the update.

        Args:
            layer: the module's bases, k directions each.
        """
        core = self.core(layer.k)
        return layer.left_basis, layer.right_basis, core[None]

    def as_update(self, layer: LayerSubspace) -> LayerUpdate:
        """The update dW = up @ down: up n x rank, down rank x d, scaling 1.

        In the compute dtype: a model stored in 16 bits is multiplied out in float32.

        Args:
            layer: the module's bases, whose dtype decides the compute dtype.
        """
        dtype = compute_dtype(layer.left_basis.dtype)
        e, f = self.factors()
        up = layer.left_basis.double() @ e.double()
        down = (layer.right_basis.double() @ f.double()).mT
        return LayerUpdate(up.to(dtype), down.to(dtype))

    def subspace_in(self, layer: LayerSubspace) -> LayerSubspace | None:
        """The one subspace of the layer that it lies in.

        None where it lies in several (a task that was trained in all of them), or in none.

        Args:
            layer: the module's bases with their groups.
        """
        if not self.is_shared or not layer.groups:
            return layer if self.is_shared else None
        k = group_size(layer, self.offset)
        fits = k is not None and self.used[0] <= k[0] and self.used[1] <= k[1]
        return layer.subspace_at(self.offset, k) if k is not None and fits else None

    @abstractmethod
    def placed(self, offset: tuple[int, int], k: tuple[int, int]) -> Coefficients:
        """Coefficients of one group in the whole layer of k directions, zeros around them.

        Args:
            offset: directions (left, right) of the layer before the group.
            k: directions (left, right) of the whole layer.
        """

    @abstractmethod
    def within(self, k: tuple[int, int]) -> Coefficients:
        """The coefficients in the k directions of their own group; undoes ``placed``.

        Args:
            k: directions (left, right) of its own group.
        """

    @abstractmethod
    def grown(self, k: tuple[int, int]) -> Coefficients:
        """The coefficients in k directions, after the bases gained some at their end.

        Args:
            k: directions (left, right) of the layer after it grew.
        """

    @abstractmethod
    def cast(self, dtype: torch.dtype) -> Coefficients:
        """The same numbers in another dtype.

        Args:
            dtype: floating-point dtype of the result.
        """


class _InSubspace(Coefficients):
    """What factors and cores have in common."""

    is_shared = True

    def with_factors(
        self, module: str, pair: CoefficientPair, layer: LayerSubspace, dtype: torch.dtype
    ) -> Coefficients:
        """In the directions of the group, or of all the layer.

        A pair for all directions that is zero outside of the group stays in the group.

        Args:
            module: path of the module, for the error.
            pair: (E, F), in the rows of the group or of all the layer.
            layer: the module's bases.
            dtype: stored dtype of the model.

        Raises:
            MismatchError: the rows are neither those of the group nor of the layer.
        """
        own = self.subspace_in(layer)
        if own is not None and _row_counts(pair) == layer.k:
            pair = _own_rows(pair, self.offset, own.k)
        if own is not None and _row_counts(pair) == own.k:
            left, right = _fitting(module, pair, own.k)
            return compact(left, right, dtype).placed(self.offset, layer.k)
        left, right = _fitting(module, pair, layer.k)
        return compact(left, right, dtype)

    def misfit(self, layer: LayerDimensions, dtype: torch.dtype) -> str:
        if group_size(layer, self.offset) is None or self._before_offset():
            return f"begins at {self.offset}, where no subspace begins or something is before"
        return _odd_shapes(self, self._shapes_for(layer), dtype)

    @abstractmethod
    def _before_offset(self) -> bool:
        """True where something stands before its offset."""

    @abstractmethod
    def _shapes_for(self, layer: LayerDimensions) -> list[tuple[int, int]]:
        """The shapes that its tensors must have in a layer."""


@dataclass(frozen=True, eq=False)
class _TwoFactors(Coefficients):
    """What is stored as its two factors."""

    left: Tensor
    right: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.left, self.right

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def factors(self) -> CoefficientPair:
        return self.left, self.right

    def cast(self, dtype: torch.dtype) -> Coefficients:
        return replace(self, left=self.left.to(dtype), right=self.right.to(dtype))


@dataclass(frozen=True, eq=False)
class Factors(_InSubspace, _TwoFactors):
    """A task in coordinates of the subspace: core C = left @ right.T.

    ``left`` is E, the coordinates in the left basis, k_left x p; ``right`` is F, those in the right
    basis, k_right x p. The pseudo-rank p is ``rank``.
    """

    offset: tuple[int, int] = field(default=(0, 0), kw_only=True)

    keys = ("left", "right")

    @classmethod
    def from_stored(
        cls, tensors: Mapping[str, Tensor], k: tuple[int, int], offset: tuple[int, int]
    ) -> Factors:
        left, right = (
            _surrounded(tensors[key], (before, 0), (size, tensors[key].shape[1]))
            for key, before, size in zip(cls.keys, offset, k, strict=True)
        )
        return cls(left, right, offset=offset)

    @property
    def used(self) -> tuple[int, int]:
        left, right = self.stored_tensors().values()
        return left.shape[0], right.shape[0]

    def stored_tensors(self) -> dict[str, Tensor]:
        left, right = self.left[self.offset[0] :], self.right[self.offset[1] :]
        return {"left": left[: _used_rows(left)], "right": right[: _used_rows(right)]}

    def exact_factors(self, k: tuple[int, int]) -> CoefficientPair:
        return self.factors()

    def add_core_to(self, core: Tensor) -> None:
        # In float64: errors are differences of cores, far below the rounding of 16 bits.
        torch.matmul(self.left.double(), self.right.double().mT, out=core)

    def placed(self, offset: tuple[int, int], k: tuple[int, int]) -> Factors:
        left, right = (
            pad(factor, (0, 0, before, size - before - len(factor)))
            for factor, before, size in zip((self.left, self.right), offset, k, strict=True)
        )
        return Factors(left, right, offset=offset)

    def within(self, k: tuple[int, int]) -> Factors:
        rows, columns = _ranges(self.offset, k)
        return Factors(self.left[rows], self.right[columns])

    def grown(self, k: tuple[int, int]) -> Factors:
        return self.placed((0, 0), k)

    def misfit(self, layer: LayerDimensions, dtype: torch.dtype) -> str:
        if _columns(self.left) > layer.shape.sides:
            return _too_wide(self.rank, layer.shape)
        return super().misfit(layer, dtype)

    def _before_offset(self) -> bool:
        return bool(self.left[: self.offset[0]].any() or self.right[: self.offset[1]].any())

    def _shapes_for(self, layer: LayerDimensions) -> list[tuple[int, int]]:
        return [(size, _columns(self.left)) for size in layer.k]


@dataclass(frozen=True, eq=False)
class Core(_InSubspace):
    """A task in coordinates of the subspace, where p = min(k_left, k_right)."""

    matrix: Tensor
    """C, the core between both bases: k_left x k_right."""
    offset: tuple[int, int] = field(default=(0, 0), kw_only=True)

    keys = ("core",)

    @classmethod
    def from_stored(
        cls, tensors: Mapping[str, Tensor], k: tuple[int, int], offset: tuple[int, int]
    ) -> Core:
        return cls(_surrounded(tensors["core"], offset, k), offset=offset)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.matrix,)

    @property
    def rank(self) -> int:
        rows, columns = self.matrix[self._block()].shape
        return min(rows, columns)

    @property
    def used(self) -> tuple[int, int]:
        rows, columns = self.stored_tensors()["core"].shape
        return rows, columns

    def stored_tensors(self) -> dict[str, Tensor]:
        matrix = self.matrix[self.offset[0] :, self.offset[1] :]
        return {"core": matrix[: _used_rows(matrix), : _used_rows(matrix.mT)]}

    def factors(self) -> CoefficientPair:
        """Balanced, by the SVD of the block that is not zero; its smaller side is the rank."""
        rows, columns = self._block()
        u, s, vh = torch.linalg.svd(self.matrix[rows, columns].double(), full_matrices=False)
        root = s.sqrt()
        k_left, k_right = self.matrix.shape
        left = pad(u * root, (0, 0, rows.start, k_left - rows.stop))
        return left, pad(vh.mT * root, (0, 0, columns.start, k_right - columns.stop))

    def exact_factors(self, k: tuple[int, int]) -> CoefficientPair:
        return self.matrix, torch.eye(k[1], dtype=self.matrix.dtype)

    def add_core_to(self, core: Tensor) -> None:
        core.copy_(self.matrix)

    def own_core(self, k: tuple[int, int]) -> Tensor | None:
        return self.within(k).matrix

    def placed(self, offset: tuple[int, int], k: tuple[int, int]) -> Core:
        (above, before), (rows, columns) = offset, self.matrix.shape
        around = (before, k[1] - before - columns, above, k[0] - above - rows)
        return Core(pad(self.matrix, around), offset=offset)

    def within(self, k: tuple[int, int]) -> Core:
        rows, columns = _ranges(self.offset, k)
        return Core(self.matrix[rows, columns])

    def grown(self, k: tuple[int, int]) -> Factors | Core:
        columns = self.matrix.shape[1]
        if (k[0] + k[1]) * columns < k[0] * k[1]:
            # C = C I exactly: as factors it does not grow with k^2.
            return Factors(*self.exact_factors((len(self.matrix), columns))).grown(k)
        return self.placed((0, 0), k)

    def cast(self, dtype: torch.dtype) -> Core:
        return replace(self, matrix=self.matrix.to(dtype))

    def _block(self) -> tuple[slice, slice]:
        """The rows and columns between which it is not zero; at least one of each."""
        rows, columns = (
            slice(before, min(before + max(used, 1), k))
            for before, used, k in zip(self.offset, self.used, self.matrix.shape, strict=True)
        )
        return rows, columns

    def _before_offset(self) -> bool:
        rows, columns = self.offset
        return bool(self.matrix[:rows].any() or self.matrix[:, :columns].any())

    def _shapes_for(self, layer: LayerDimensions) -> list[tuple[int, int]]:
        return [layer.k]


@dataclass(frozen=True, eq=False)
class PerTask(_TwoFactors):
    """A task's update outside the subspace: dW = left @ right.T, its own truncated SVD.

    ``left`` is P, the left factor of the update itself, n x q; ``right`` is Q, d x q.
    """

    # The stored format named them before these updates were called "stored per task".
    keys = ("private_left", "private_right")
    is_shared = False
    offset = (0, 0)

    @classmethod
    def from_stored(
        cls, tensors: Mapping[str, Tensor], k: tuple[int, int], offset: tuple[int, int]
    ) -> PerTask:
        left, right = (tensors[key].clone() for key in cls.keys)
        return cls(left, right)

    @property
    def used(self) -> tuple[int, int]:
        return 0, 0

    def stored_tensors(self) -> dict[str, Tensor]:
        return dict(zip(self.keys, self.tensors, strict=True))

    def add_core_to(self, core: Tensor) -> None:
        """Nothing: it has no core in the subspace.

        Args:
            core: left as it is.
        """

    def exact_factors(self, k: tuple[int, int]) -> CoefficientPair:
        left, right = (torch.empty(size, 0) for size in k)
        return left, right

    def framed(self, layer: LayerSubspace) -> tuple[Tensor, Tensor, Tensor]:
        return self.left, self.right, torch.eye(self.rank, dtype=torch.float64)[None]

    def as_update(self, layer: LayerSubspace) -> LayerUpdate:
        dtype = compute_dtype(layer.left_basis.dtype)
        return LayerUpdate(self.left.to(dtype), self.right.mT.to(dtype))

    def with_factors(
        self, module: str, pair: CoefficientPair, layer: LayerSubspace, dtype: torch.dtype
    ) -> PerTask:
        left, right = _fitting(module, pair, _sides(layer.shape))
        return PerTask(left.to(dtype, copy=True), right.to(dtype, copy=True))

    def misfit(self, layer: LayerDimensions, dtype: torch.dtype) -> str:
        q = _columns(self.left)
        if q > layer.shape.sides:
            return _too_wide(q, layer.shape)
        return _odd_shapes(self, [(side, q) for side in _sides(layer.shape)], dtype)

    def placed(self, offset: tuple[int, int], k: tuple[int, int]) -> PerTask:
        return self

    def within(self, k: tuple[int, int]) -> PerTask:
        return self

    def grown(self, k: tuple[int, int]) -> PerTask:
        return self


KINDS: tuple[type[Coefficients], ...] = (Factors, Core, PerTask)
"""All kinds that a task's file may hold; ``keys`` tells them apart."""


def compact(left: Tensor, right: Tensor, dtype: torch.dtype) -> Factors | Core:
    """E and F in the stored dtype, or their core where p is the whole of a side.

    For a smaller p the core could be up to half the bytes of E and F, but its cast would hide the
    rank, and an export could not be of rank p.
    """
    if left.shape[1] < min(left.shape[0], right.shape[0]):
        return Factors(_copied(left, dtype), _copied(right, dtype))
    return Core(_copied(left @ right.mT, dtype))


def _copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _used_rows(matrix: Tensor) -> int:
    """Rows up to the last that is not zero; a row with -0.0 is not zero, so that files keep it.

    An exact merge only appends zero rows to the known tasks' coefficients; they are not stored.
    """
    if matrix.numel() == 0:
        return 0
    if matrix[-1].any():
        return matrix.shape[0]
    used = ((matrix != 0) | matrix.signbit()).any(dim=1).nonzero()
    return int(used[-1]) + 1 if len(used) else 0


def _surrounded(matrix: Tensor, offset: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A copy with zeros around it; one that is too large stays so, to be refused."""
    (above, before), (rows, columns) = offset, matrix.shape
    padded = matrix.new_zeros((max(size[0], above + rows), max(size[1], before + columns)))
    padded[above : above + rows, before : before + columns] = matrix
    return padded


def _ranges(offset: tuple[int, int], k: tuple[int, int]) -> tuple[slice, slice]:
    return slice(offset[0], offset[0] + k[0]), slice(offset[1], offset[1] + k[1])


def _columns(matrix: Tensor) -> int:
    return matrix.shape[-1] if matrix.ndim else 0


def _sides(shape: ModuleShape) -> tuple[int, int]:
    return shape.out_features, shape.in_features


def _too_wide(columns: int, shape: ModuleShape) -> str:
    return f"{columns} columns, more than any matrix of {shape} has directions"


def _odd_shapes(value: Coefficients, wanted: list[tuple[int, int]], dtype: torch.dtype) -> str:
    """Why its tensors are not of these shapes and this dtype; empty where they are."""
    shapes = [tuple(tensor.shape) for tensor in value.tensors]
    if shapes != wanted:
        return f"{type(value).__name__} of shapes {shapes} where {wanted} belongs"
    dtypes = {tensor.dtype for tensor in value.tensors} - {dtype}
    return f"dtype {dtypes.pop()} in a model of {dtype}" if dtypes else ""


def _row_counts(pair: CoefficientPair) -> tuple[int, int]:
    return pair[0].shape[0], pair[1].shape[0]


def _fitting(module: str, pair: CoefficientPair, rows: tuple[int, int]) -> CoefficientPair:
    """The pair.

    Raises:
        MismatchError: its rows are others, or its factors have not as many columns.
    """
    left, right = pair
    if _row_counts(pair) != rows or left.shape[1] != right.shape[1]:
        raise MismatchError(
            f"module {module!r}",
            f"coefficients of {tuple(left.shape)} and {tuple(right.shape)} for bases of {rows}",
            "Train them in this version of the Share model, with phi=0",
        )
    return pair


def _own_rows(
    pair: CoefficientPair, offset: tuple[int, int], k: tuple[int, int]
) -> CoefficientPair:
    """The rows of one group where all others are zero; else the pair as it is."""
    own = []
    for matrix, first, count in zip(pair, offset, k, strict=True):
        if matrix[:first].any() or matrix[first + count :].any():
            return pair
        own.append(matrix[first : first + count])
    return own[0], own[1]
