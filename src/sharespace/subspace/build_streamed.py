"""A layer whose adapters do not fit in memory together: built and merged out of core.

Method ``joint`` only, with a fixed k or an explained variance below 1. Other rules look at every
direction of every task at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sharespace.linalg.compress import (
    CompressedTasks,
    FrameSearch,
    compress,
    problem_of,
)
from sharespace.linalg.dimension import Dimension
from sharespace.linalg.factor_chunks import FactorReader
from sharespace.linalg.frames import FramedTasks, framed_updates
from sharespace.linalg.precision import compute_dtype
from sharespace.linalg.problem import BasisPair, UpdateProblem
from sharespace.linalg.truncated import orthonormal, sketch_width
from sharespace.subspace.adapter import Adapter, ModuleShape
from sharespace.subspace.basis_method import LayerTasks
from sharespace.subspace.build_layer import (
    Build,
    LayerResult,
    balanced,
    read_pairs,
    read_updates,
    refuse_extremes,
    stored_basis,
)
from sharespace.subspace.coefficients import Coefficients
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.merge_layer import (
    Known,
    MergeSide,
    certified,
    known_of,
    lost_by,
    merge_sides,
)

CHUNK_BYTES = 1 << 25
"""Bytes of the factors that are in memory at once: larger chunks are not faster."""
FIRST_GUESS = 64
"""k with which the search for an explained variance group_offsets."""


class TooWideError(Exception):
    """As many directions are needed that the cores would be as large as the adapters."""


def rows_of(members: Sequence[Adapter], module: str, build: Build, memory: int) -> FactorReader:
    """The factors of one module, read when they are needed."""
    shape = members[0].shapes[module]

    def read(task: int, left: Tensor, right: Tensor) -> None:
        pairs = read_pairs([members[task]], module, build.device)
        for factor, place in zip(balanced(*next(pairs)), (left, right), strict=True):
            place.copy_(factor.mT)

    return FactorReader(
        n=shape.out_features,
        d=shape.in_features,
        ranks=tuple(a.ranks[module] for a in members),
        dtype=compute_dtype(*(a.dtype for a in members)),
        device=build.device,
        read=read,
        chunk_bytes=min(memory // 8, CHUNK_BYTES),
    )


def build_streamed(
    module: str, shape: ModuleShape, members: Sequence[Adapter], build: Build, memory: int
) -> LayerResult:
    """One layer of a Share model from all the adapters that adapt it, out of core.

    Raises:
        CorruptAdapterError: a factor holds NaN or infinity, or numbers too large to compute with.
        TooWideError: the explained variance needs too many directions.
    """
    settings, cap = build.settings, build.dimension.cap(module)
    entry = [build.entry_norms.get(a.name, {}).get(module, torch.nan) for a in members]
    wanted = FrameSearch(
        cap or (FIRST_GUESS, FIRST_GUESS),
        settings.p,
        settings.seed,
        torch.tensor(entry, dtype=torch.float64),
    )
    rows = rows_of(members, module, build, memory)
    if cap is None:
        compressed, bases = _explained(rows, members, module, wanted, build, memory)
    else:
        compressed = _compressed(rows, members, module, wanted)
        bases = build.method.bases(LayerTasks(problem_of(compressed, wanted)), cap)
    side = _side(members, compressed)
    layer = LayerSubspace(
        shape,
        _turned(compressed.left, bases.left, build.dtype),
        _turned(compressed.right, bases.right, build.dtype),
        cap,
        certified(problem_of(compressed, wanted), bases, side),
        streamed=True,
    )
    return _result(layer, side, build.method.express(side.framed, layer, settings.p))


def _result(
    layer: LayerSubspace, side: MergeSide, coefficients: Sequence[Coefficients]
) -> LayerResult:
    return LayerResult(
        layer,
        dict(zip(side.names, coefficients, strict=True)),
        dict(zip(side.names, lost_by(side, layer, coefficients), strict=True)),
        dict(zip(side.names, side.norms.tolist(), strict=True)),
    )


def _turned(frame: Tensor, basis: Tensor, dtype: torch.dtype) -> Tensor:
    return stored_basis(frame.double() @ basis.double(), dtype)


def _compressed(
    rows: FactorReader, members: Sequence[Adapter], module: str, wanted: FrameSearch
) -> CompressedTasks:
    compressed = compress(rows, wanted)
    refuse_extremes(members, module, compressed.norms)
    return compressed


def _side(members: Sequence[Adapter], compressed: CompressedTasks) -> MergeSide:
    # Orthonormal to float64: what that moves is rounding of the dtype they were computed in.
    frames = orthonormal(compressed.left.double()), orthonormal(compressed.right.double())
    framed = FramedTasks(*frames, compressed.core)
    return MergeSide(tuple(a.name for a in members), framed, compressed.norms, compressed.outside)


def _explained(
    rows: FactorReader,
    members: Sequence[Adapter],
    module: str,
    wanted: FrameSearch,
    build: Build,
    memory: int,
) -> tuple[CompressedTasks, BasisPair]:
    """Bases that explain the variance, from frames that are wider than they need to be."""
    limit = min(max(rows.n, rows.d), sum(rows.ranks))
    k = min(FIRST_GUESS, limit)
    while True:
        columns = sketch_width(k, limit, limit)
        if 4 * sum(rows.ranks) * columns * torch.float64.itemsize > memory:
            raise TooWideError(f"more than {k} directions")
        guess = replace(wanted, k=(k, k))
        compressed = _compressed(rows, members, module, guess)
        bases = _smallest(problem_of(compressed, guess), compressed, build, k == limit)
        if bases is not None and (max(bases.k) <= k or k == limit):
            return compressed, bases
        k = min(4 * k if bases is None else max(bases.k), limit)


def _smallest(
    problem: UpdateProblem, compressed: CompressedTasks, build: Build, last: bool
) -> BasisPair | None:
    """None where the frames do not hold enough."""
    total = float((problem.weights * compressed.norms.to(problem.weights)).square().sum())
    target = (build.dimension.variance or 0.0) * total / problem.total if problem.total else 1.0
    if target > 1.0 and not last:
        return None
    rule = Dimension(variance=min(target, 1.0))
    return build.method.smallest_bases(LayerTasks(problem), rule)


def merge_streamed(
    layer: LayerSubspace,
    known: Known,
    members: Sequence[Adapter],
    module: str,
    build: Build,
    memory: int,
) -> LayerResult:
    """A layer with newcomers, out of core.

    At a cap in one merge, from the known tasks' cores and the newcomers in frames that hold the
    known bases. Without one nothing may be lost: the newcomers are merged in portions, each of
    which adds the directions that it needs.

    Raises:
        CorruptAdapterError: a factor holds NaN or infinity, or numbers too large to compute with.
    """
    if layer.cap is None:
        return _in_portions(layer, known, members, module, build, memory)
    rows = rows_of(members, module, build, memory)
    bases = BasisPair(known.side.framed.left, known.side.framed.right)
    settings = build.settings
    wanted = FrameSearch(layer.cap, settings.p, settings.seed, known=bases)
    side = _side(members, _compressed(rows, members, module, wanted))
    return _marked(merge_sides(layer, known, side, settings))


def _marked(result: LayerResult) -> LayerResult:
    return replace(result, layer=replace(result.layer, streamed=True))


def _in_portions(
    layer: LayerSubspace,
    known: Known,
    members: Sequence[Adapter],
    module: str,
    build: Build,
    memory: int,
) -> LayerResult:
    lost: dict[str, float] = {}
    norms: dict[str, float] = {}
    coefficients: Mapping[str, Coefficients] = {}
    for part in portions(members, module, memory):
        updates = read_updates(part, module, build.device)
        side = MergeSide(tuple(a.name for a in part), framed_updates(updates), updates.norms)
        result = merge_sides(layer, known, side, build.settings)
        layer = result.layer
        lost.update({n: lost.get(n, 0.0) + x for n, x in result.lost.items()})
        norms.update(result.norms)
        coefficients = result.coefficients
        entered = dict(zip(known.side.names, known.side.norms.tolist(), strict=True)) | norms
        known = known_of(layer, {n: (c, entered[n]) for n, c in coefficients.items()}, build.device)
    return _marked(LayerResult(layer, coefficients, lost, norms))


def portions(members: Sequence[Adapter], module: str, memory: int) -> list[list[Adapter]]:
    """The adapters in their order, as many together as may be in memory at once; at least one."""
    result: list[list[Adapter]] = []
    used = 0
    for adapter in members:
        needed = merge_bytes([adapter], module)
        if not result or used + needed > memory:
            result.append([])
            used = 0
        result[-1].append(adapter)
        used += needed
    return result


def build_bytes(members: Sequence[Adapter], module: str) -> int:
    """What a layer of all these adapters takes in memory: their canonical form, and once more as
    much on the way."""
    shape = members[0].shapes[module]
    sides = shape.out_features + shape.in_features
    dtype = compute_dtype(*(a.dtype for a in members))
    columns = sum(min(a.ranks[module], shape.out_features, shape.in_features) for a in members)
    return 2 * columns * sides * dtype.itemsize


def merge_bytes(members: Sequence[Adapter], module: str) -> int:
    """The same for a merge, which works in float64 throughout."""
    dtype = compute_dtype(*(a.dtype for a in members))
    return 3 * build_bytes(members, module) * torch.float64.itemsize // dtype.itemsize
