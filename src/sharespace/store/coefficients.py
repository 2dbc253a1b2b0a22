"""Coefficients <-> the tensors that stand for them on disk.

A merge that enlarges the basis adds zero rows to the coefficients of every old task. They are not
written, and put back on reading, so that such a merge changes no old task's file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sharespace.store.layout import LayerEntry
from sharespace.subspace.state import Coefficients, Core, Factors, Private

ALL_PARTS = ("left", "right", "core", "private_left", "private_right")
"""Last components of the keys in a task's file."""


def parts_of(coefficients: Coefficients) -> dict[str, Tensor]:
    """The tensors that are stored, by the last component of their key: no trailing zero rows."""
    if isinstance(coefficients, Factors):
        left, right = coefficients.left, coefficients.right
        return {"left": left[: _rows(left)], "right": right[: _rows(right)]}
    if isinstance(coefficients, Core):
        matrix = coefficients.matrix
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
    parts: tuple[str, ...], tensors: list[Tensor], k: tuple[int, int]
) -> Coefficients | None:
    """Coefficients from stored tensors, padded with zeros to k; None: not a set of parts.

    The result is a copy; whether it fits is for ``misfit`` to say.
    """
    if parts == ("left", "right"):
        left, right = tensors
        return Factors(_pad(left, k[0], left.shape[1]), _pad(right, k[1], right.shape[1]))
    if parts == ("core",):
        return Core(_pad(tensors[0], *k))
    if parts == ("private_left", "private_right"):
        return Private(tensors[0].clone(), tensors[1].clone())
    return None


def _pad(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """A copy with zeros below and to the right; one that is too large stays so, to be refused."""
    if matrix.shape[0] >= rows and matrix.shape[1] >= columns:
        return matrix.clone()
    rows, columns = max(rows, matrix.shape[0]), max(columns, matrix.shape[1])
    padded = matrix.new_zeros((rows, columns))
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
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
    found = [tuple(t.shape) for t in tensors]
    if found != wanted:
        return f"{type(coefficients).__name__} of shapes {found} where {wanted} belongs"
    dtypes = {t.dtype for t in tensors} - {dtype}
    return f"dtype {dtypes.pop()} in a model of {dtype}" if dtypes else ""
