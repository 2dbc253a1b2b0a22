"""Layers with a subspace for each family of tasks, and coefficients in one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from sharespace.subspace.state import Coefficients, Core, Factors, LayerSubspace


def side_by_side(parts: Sequence[LayerSubspace]) -> LayerSubspace:
    """One layer of several subspaces; the first part says all else (cap and certificate: none).

    Args:
        parts: of one module, at least one.
    """
    known = [part.k for part in parts if part.k != (0, 0)]
    return LayerSubspace(
        shape=parts[0].shape,
        left_basis=torch.cat([part.left_basis for part in parts], dim=1),
        right_basis=torch.cat([part.right_basis for part in parts], dim=1),
        parts=tuple(known) if len(known) > 1 else (),
    )


def begins(parts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Directions (left, right) before each part."""
    found = [(0, 0)]
    for left, right in parts[:-1]:
        found.append((found[-1][0] + left, found[-1][1] + right))
    return found


def placed(value: Coefficients, begin: tuple[int, int], k: tuple[int, int]) -> Coefficients:
    """Coefficients of one part in the whole layer, between zero rows (of a core also columns).

    Args:
        value: in the part's directions.
        begin: directions before the part.
        k: of the whole layer.
    """
    if isinstance(value, Core):
        rows, columns = _around(value.matrix, begin, k)
        return Core(pad(value.matrix, (*columns, *rows)), begin=begin)
    if isinstance(value, Factors):
        left, right = (
            pad(part, (0, 0, before, most - before - len(part)))
            for part, before, most in zip((value.left, value.right), begin, k, strict=True)
        )
        return Factors(left, right, begin=begin)
    return value


def _around(matrix: Tensor, begin: tuple[int, int], k: tuple[int, int]) -> list[tuple[int, int]]:
    return [
        (before, most - before - size)
        for before, most, size in zip(begin, k, matrix.shape, strict=True)
    ]


def subspaces(layer: LayerSubspace) -> list[LayerSubspace]:
    """Each of the layer's subspaces as a layer of its own."""
    if not layer.parts:
        return [layer]
    return [_cut(layer, b, k) for b, k in zip(begins(layer.parts), layer.parts, strict=True)]


def _cut(layer: LayerSubspace, begin: tuple[int, int], k: tuple[int, int]) -> LayerSubspace:
    left, right = _ranges(begin, k)
    bases = layer.left_basis[:, left], layer.right_basis[:, right]
    return replace(layer, left_basis=bases[0], right_basis=bases[1], parts=())


def size_at(parts: Sequence[tuple[int, int]], begin: tuple[int, int]) -> tuple[int, int]:
    """Directions (left, right) of the part that begins there."""
    return parts[begins(parts).index(begin)]


def part_of(layer: LayerSubspace, value: Factors | Core) -> LayerSubspace | None:
    """The one subspace of the layer that the coefficients are in.

    None where they are in several: a task that was trained in all of them.
    """
    if not layer.parts:
        return layer
    k = size_at(layer.parts, value.begin)
    fits = value.used[0] <= k[0] and value.used[1] <= k[1]
    return _cut(layer, value.begin, k) if fits else None


def inside(value: Factors | Core, k: tuple[int, int]) -> Factors | Core:
    """The coefficients in the directions of their own subspace, of which it has k."""
    left, right = _ranges(value.begin, k)
    if isinstance(value, Core):
        return Core(value.matrix[left, right])
    return Factors(value.left[left], value.right[right])


def _ranges(begin: tuple[int, int], k: tuple[int, int]) -> tuple[slice, slice]:
    return slice(begin[0], begin[0] + k[0]), slice(begin[1], begin[1] + k[1])
