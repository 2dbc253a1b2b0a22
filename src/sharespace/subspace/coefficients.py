"""Express tasks in a layer's subspace, as it is stored.

Layers with a subspace for each family of tasks, and coefficients in one of them.

A task back as plain low-rank updates, exactly as stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from sharespace.linalg.frames import FactoredFrame, FrameSplit, errors, split_errors
from sharespace.linalg.precision import compute_dtype
from sharespace.linalg.updates import CanonicalUpdates, core_factors
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.state import Coefficients, Core, Factors, LayerSubspace, ShareModel, Task


@dataclass(frozen=True, eq=False)
class Projection:
    """Tasks in a layer's coordinates, and what that lost."""

    coefficients: tuple[Coefficients, ...]
    lost: Tensor
    """float64 [tasks]: |dW_i - stored|, casts included."""
    outside: Tensor | None = None
    """float64 [2, tasks]: energy of dW_i outside the stored left basis, and the right one."""


def project(updates: CanonicalUpdates, layer: LayerSubspace, p: int | None = None) -> Projection:
    """The best coefficients of each task in the stored bases.

    Args:
        updates: the tasks' updates to this module.
        layer: the subspace; its bases may be in 16 bits, the coefficients then make up for what
            the cast did to them as far as they can (least squares in the stored frame).
        p: pseudo-rank; None: min(k, r_i), which loses nothing more than the projection.
    """
    dtype, device = updates.left.dtype, updates.left.device
    left, right = layer.left_basis.to(device), layer.right_basis.to(device)
    frames = FactoredFrame.of(left, dtype), FactoredFrame.of(right, dtype)
    coefficients: list[Coefficients] = []
    lost, outside = [], []
    turns = [f.r @ t.to(f.r) for f, t in zip(frames, frame_turns(layer), strict=True)]
    for _, part in updates.slices():
        splits = frames[0].split(part), frames[1].split(part.flipped)
        left_seen, right_seen = (s.inside @ t for s, t in zip(splits, turns, strict=True))
        found = coefficients_of(left_seen, part, right_seen, layer, p)
        cores = dense_cores(found, layer).to(device)
        coefficients += found
        lost.append(split_errors(part, frames, splits, cores))
        outside.append(torch.stack([_energies(part, split) for split in splits]))
    return Projection(tuple(coefficients), torch.cat(lost).cpu(), torch.cat(outside, dim=1).cpu())


def _energies(updates: CanonicalUpdates, split: FrameSplit) -> Tensor:
    """float64 [tasks]: energy outside of the frame that split them."""
    square = updates.blocks(updates.sigma.double().square())
    return (square * split.outside.diagonal(dim1=1, dim2=2)).sum(1)


def project_factors(
    pairs: Sequence[tuple[Tensor, Tensor]], updates: CanonicalUpdates, layer: LayerSubspace
) -> Projection:
    """The paper's projection: B_i and A_i^T each onto its basis, their split kept as it came.

    The same update as ``project`` gives; but a later merge by ``share`` depends on the split.
    """
    device = updates.left.device
    left, right = layer.left_basis.to(device), layer.right_basis.to(device)
    seen = [
        (up.double().mT @ left.double(), down.double().mT @ right.double()) for up, down in pairs
    ]
    coefficients = split_coefficients(seen, layer)
    cores = dense_cores(coefficients, layer).to(device)
    return Projection(coefficients, errors(updates, left, right, cores).cpu())


def split_coefficients(
    seen: Sequence[tuple[Tensor, Tensor]], layer: LayerSubspace
) -> tuple[Coefficients, ...]:
    """Coefficients from what the stored bases see of each factor (r x k_left, r x k_right)."""
    turns = frame_turns(layer)
    return tuple(
        stored(
            (left.double() @ turns[0].to(left.device)).mT.cpu(),
            (right.double() @ turns[1].to(right.device)).mT.cpu(),
            layer.left_basis.dtype,
        )
        for left, right in seen
    )


def frame_turns(layer: LayerSubspace) -> tuple[Tensor, Tensor]:
    """Inverses of the inner products of the stored bases' columns, float64: the identity but for
    their cast. They turn inner products with a basis into coordinates in it (least squares)."""
    left, right = layer.left_basis.double(), layer.right_basis.double()
    return torch.linalg.inv(left.mT @ left), torch.linalg.inv(right.mT @ right)


def coefficients_of(
    left: Tensor, updates: CanonicalUpdates, right: Tensor, layer: LayerSubspace, p: int | None
) -> tuple[Coefficients, ...]:
    """Coefficients from each task's directions in coordinates of the stored bases (tasks x r x k,
    each side): what these see of them, turned by ``frame_turns``."""
    sigma = updates.blocks(updates.sigma)
    e, f = core_factors(left, sigma, right, p)
    e, f = e.cpu(), f.cpu()
    dtype = layer.left_basis.dtype
    if min(e.shape[1], f.shape[1]) > e.shape[2]:  # all at once: a cast for each costs more
        e, f = e.to(dtype), f.to(dtype)
    return tuple(stored(e[i, :, :r], f[i, :, :r], dtype) for i, r in enumerate(updates.ranks))


def stored(left: Tensor, right: Tensor, dtype: torch.dtype) -> Coefficients:
    """E and F in the stored dtype, or their core where p is the whole of a side.

    For a smaller p the core could be up to half the bytes of E and F, but its cast would hide the
    rank, and an export could not be of rank p.
    """
    if left.shape[1] < min(left.shape[0], right.shape[0]):
        return Factors(_cast(left, dtype), _cast(right, dtype))
    return Core(_cast(left @ right.mT, dtype))


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def factor_rows(
    coefficients: Sequence[Coefficients], layer: LayerSubspace
) -> tuple[Tensor, Tensor]:
    """The stored E^T and F^T, float64 [tasks, p, k_left] and [tasks, p, k_right], with zeros where
    a p is smaller than the largest; a core is C and 1, a private update nothing."""
    pairs = [_pair(value, layer) for value in coefficients]
    shapes = {(e.shape, f.shape) for e, f in pairs}
    if len(shapes) == 1:
        left, right = (torch.stack(side).mT.double() for side in zip(*pairs, strict=True))
        return left.contiguous(), right.contiguous()
    p = max((e.shape[1] for e, _ in pairs), default=0)
    wide = [torch.zeros(len(pairs), p, k, dtype=torch.float64) for k in layer.k]
    for i, pair in enumerate(pairs):
        for target, part in zip(wide, pair, strict=True):
            target[i, : part.shape[1]] = part.mT
    return wide[0], wide[1]


def _pair(value: Coefficients, layer: LayerSubspace) -> tuple[Tensor, Tensor]:
    if isinstance(value, Factors):
        return value.left, value.right
    if isinstance(value, Core):
        return value.matrix, torch.eye(layer.k[1], dtype=value.matrix.dtype)
    return torch.empty(layer.k[0], 0), torch.empty(layer.k[1], 0)


def dense_cores(coefficients: Sequence[Coefficients], layer: LayerSubspace) -> Tensor:
    """The stored cores, float64 [tasks, k_left, k_right]; a private update has none (zero)."""
    result = torch.zeros(len(coefficients), *layer.k, dtype=torch.float64)
    for core, value in zip(result, coefficients, strict=True):
        if isinstance(value, Factors):
            torch.matmul(value.left.double(), value.right.double().mT, out=core)
        elif isinstance(value, Core):
            core.copy_(value.matrix)
    return result


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
        groups=tuple(known) if len(known) > 1 else (),
    )


def group_offsets(parts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Directions (left, right) before each part."""
    found = [(0, 0)]
    for left, right in parts[:-1]:
        found.append((found[-1][0] + left, found[-1][1] + right))
    return found


def placed(value: Coefficients, offset: tuple[int, int], k: tuple[int, int]) -> Coefficients:
    """Coefficients of one part in the whole layer, between zero rows (of a core also columns).

    Args:
        value: in the part's directions.
        offset: directions before the part.
        k: of the whole layer.
    """
    if isinstance(value, Core):
        rows, columns = _around(value.matrix, offset, k)
        return Core(pad(value.matrix, (*columns, *rows)), offset=offset)
    if isinstance(value, Factors):
        left, right = (
            pad(part, (0, 0, before, most - before - len(part)))
            for part, before, most in zip((value.left, value.right), offset, k, strict=True)
        )
        return Factors(left, right, offset=offset)
    return value


def _around(matrix: Tensor, offset: tuple[int, int], k: tuple[int, int]) -> list[tuple[int, int]]:
    return [
        (before, most - before - size)
        for before, most, size in zip(offset, k, matrix.shape, strict=True)
    ]


def subspaces(layer: LayerSubspace) -> list[LayerSubspace]:
    """Each of the layer's subspaces as a layer of its own."""
    if not layer.groups:
        return [layer]
    return [
        _cut(layer, b, k) for b, k in zip(group_offsets(layer.groups), layer.groups, strict=True)
    ]


def _cut(layer: LayerSubspace, offset: tuple[int, int], k: tuple[int, int]) -> LayerSubspace:
    left, right = _ranges(offset, k)
    bases = layer.left_basis[:, left], layer.right_basis[:, right]
    return replace(layer, left_basis=bases[0], right_basis=bases[1], groups=())


def size_at(parts: Sequence[tuple[int, int]], offset: tuple[int, int]) -> tuple[int, int]:
    """Directions (left, right) of the group that begins there."""
    return parts[group_offsets(parts).index(offset)]


def part_of(layer: LayerSubspace, value: Factors | Core) -> LayerSubspace | None:
    """The one subspace of the layer that the coefficients are in.

    None where they are in several: a task that was trained in all of them.
    """
    if not layer.groups:
        return layer
    k = size_at(layer.groups, value.offset)
    fits = value.used[0] <= k[0] and value.used[1] <= k[1]
    return _cut(layer, value.offset, k) if fits else None


def inside(value: Factors | Core, k: tuple[int, int]) -> Factors | Core:
    """The coefficients in the directions of their own subspace, of which it has k."""
    left, right = _ranges(value.offset, k)
    if isinstance(value, Core):
        return Core(value.matrix[left, right])
    return Factors(value.left[left], value.right[right])


def _ranges(offset: tuple[int, int], k: tuple[int, int]) -> tuple[slice, slice]:
    return slice(offset[0], offset[0] + k[0]), slice(offset[1], offset[1] + k[1])


def factor_pair(value: Factors | Core) -> tuple[Tensor, Tensor]:
    """(E, F) of a task in coordinates of the subspace; a core is split by its SVD.

    Of a core that uses some of the directions only, the columns are as many as these.
    """
    if isinstance(value, Factors):
        return value.left, value.right
    rows, columns = _block(value)
    u, s, vh = torch.linalg.svd(value.matrix[rows, columns].double(), full_matrices=False)
    root = s.sqrt()
    k_left, k_right = value.matrix.shape
    return _placed(u * root, rows, k_left), _placed(vh.mT * root, columns, k_right)


def _block(value: Core) -> tuple[slice, slice]:
    """The rows and columns of a core between which it is not zero; at least one of each."""
    rows, columns = (
        slice(offset, min(offset + max(used, 1), k))
        for offset, used, k in zip(value.offset, value.used, value.matrix.shape, strict=True)
    )
    return rows, columns


def _placed(matrix: Tensor, rows: slice, k: int) -> Tensor:
    """With zero rows before and after."""
    return torch.nn.functional.pad(matrix, (0, 0, rows.start, k - rows.stop))


def layer_update(layer: LayerSubspace, value: Coefficients) -> LayerUpdate:
    """One module's update: up = left_basis E (n x p), down = (right_basis F)^T (p x d), scaling 1.

    In the compute dtype: a model stored in 16 bits is multiplied out in float32.
    """
    dtype = compute_dtype(layer.left_basis.dtype)
    if not isinstance(value, Factors | Core):
        return LayerUpdate(value.left.to(dtype), value.right.mT.to(dtype))
    e, f = factor_pair(value)
    up = layer.left_basis.double() @ e.double()
    down = (layer.right_basis.double() @ f.double()).mT
    return LayerUpdate(up.to(dtype), down.to(dtype))


def reconstruct(model: ShareModel, name: str) -> Mapping[str, LayerUpdate]:
    """A task's updates by module, in the compute dtype.

    Raises:
        TaskNotFoundError: there is no such task.
    """
    task = model.task(name)
    return {m: layer_update(model.layers[m], c) for m, c in task.coefficients.items()}


def as_adapter(model: ShareModel, task: Task) -> Adapter:
    """A task as an adapter again, read layer by layer; it carries all that came with the task."""
    ranks = {m: rank(c) for m, c in task.coefficients.items()}
    return Adapter(
        name=task.name,
        base=model.base,
        shapes={m: model.layers[m].shape for m in task.coefficients},
        ranks=ranks,
        dtype=model.dtype,
        layer=lambda module: layer_update(model.layers[module], task.coefficients[module]),
        kept=task.kept,
        config=task.config,
        provenance=task.provenance,
        nbytes=task.adapter_bytes,
    )


def rank(value: Coefficients) -> int:
    """Of the update as it is stored."""
    if isinstance(value, Core):
        rows, columns = (int(part.stop - part.start) for part in _block(value))
        return min(rows, columns)
    return value.left.shape[1]
