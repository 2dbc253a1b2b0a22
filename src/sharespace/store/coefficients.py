"""Coefficients <-> the tensors that stand for them on disk.

A merge that enlarges the basis adds zero rows to the coefficients of every old task. They are not
written, and put back on reading, so that such a merge changes no old task's file. Nor are the rows
before a family's own subspace: where it begins is written instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sharespace.store.layout import LayerEntry
from sharespace.subspace.parts import begins
from sharespace.subspace.state import Coefficients, Core, Factors, Private

ALL_PARTS = ("left", "right", "core", "private_left", "private_right")
"""Last components of the keys in a task's file."""


def parts_of(coefficients: Coefficients) -> dict[str, Tensor]:
    """The tensors that are stored, by the last component of their key: no trailing zero rows, and
    none before the subspace that they begin in."""
    if isinstance(coefficients, Factors):
        rows, columns = coefficients.begin
        left, right = coefficients.left[rows:], coefficients.right[columns:]
        return {"left": left[: _rows(left)], "right": right[: _rows(right)]}
    if isinstance(coefficients, Core):
        rows, columns = coefficients.begin
        matrix = coefficients.matrix[rows:, columns:]
        return {"core": matrix[: _rows(matrix), : _rows(matrix.T)]}
    return {"private_left": coefficients.left, "private_right": coefficients.right}


def _rows(matrix: Tensor) -> int:
    """Number of rows up to the last that is not zero; a row with -0.0 is not zero."""
    if matrix.numel() == 0:
        return 0
    if matrix[-1].any():
        return matrix.shape[0]
    used = (matrix != 0) | matrix.signbit()
    found = used.any(dim=1).nonzero()
    return int(found[-1]) + 1 if len(found) else 0


def from_parts(
    parts: tuple[str, ...],
    tensors: list[Tensor],
    k: tuple[int, int],
    begin: tuple[int, int] = (0, 0),
) -> Coefficients | None:
    """Coefficients from stored tensors, padded with zeros to k; None: not a set of parts.

    The result is a copy; whether it fits is for ``misfit`` to say.

    Args:
        begin: directions before those of the tensors.
    """
    if parts == ("left", "right"):
        left, right = (
            _pad(matrix, (before, 0), (most, matrix.shape[1]))
            for matrix, before, most in zip(tensors, begin, k, strict=True)
        )
        return Factors(left, right, begin=begin)
    if parts == ("core",):
        return Core(_pad(tensors[0], begin, k), begin=begin)
    if parts == ("private_left", "private_right"):
        return Private(tensors[0].clone(), tensors[1].clone())
    return None


def _pad(matrix: Tensor, begin: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A copy with zeros around it; one that is too large stays so, to be refused."""
    (above, before), (rows, columns) = begin, matrix.shape
    padded = matrix.new_zeros((max(size[0], above + rows), max(size[1], before + columns)))
    padded[above : above + rows, before : before + columns] = matrix
    return padded


def misfit(coefficients: Coefficients, layer: LayerEntry, dtype: torch.dtype) -> str:
    """Why the coefficients do not fit the layer; empty where they do."""
    k_left, k_right = layer.k
    if isinstance(coefficients, Core):
        tensors, wanted = [coefficients.matrix], [(k_left, k_right)]
    else:
        tensors = [coefficients.left, coefficients.right]
        columns = coefficients.left.shape[-1] if coefficients.left.ndim else 0
        private = isinstance(coefficients, Private)
        rows = (layer.shape.out_features, layer.shape.in_features) if private else layer.k
        wanted = [(rows[0], columns), (rows[1], columns)]
        if columns > layer.shape.sides:
            return f"{columns} columns, more than any matrix of {layer.shape} has directions"
    if not isinstance(coefficients, Private) and not _may_begin(coefficients, layer):
        return f"begins at {coefficients.begin}, where no subspace begins or something is before"
    found = [tuple(t.shape) for t in tensors]
    if found != wanted:
        return f"{type(coefficients).__name__} of shapes {found} where {wanted} belongs"
    dtypes = {t.dtype for t in tensors} - {dtype}
    return f"dtype {dtypes.pop()} in a model of {dtype}" if dtypes else ""


def _may_begin(found: Factors | Core, layer: LayerEntry) -> bool:
    """At one of the layer's subspaces, and all before it is zero."""
    rows, columns = found.begin
    if found.begin not in begins(layer.parts or (layer.k,)):
        return False
    if isinstance(found, Core):
        return not (found.matrix[:rows].any() or found.matrix[:, :columns].any())
    return not (found.left[:rows].any() or found.right[:columns].any())
