"""How one layer is built or merged: in memory where it fits, out of core where it does not."""

from __future__ import annotations

from collections.abc import Sequence

from sharespace.errors import OptionError
from sharespace.linalg.core_merge import framed_updates
from sharespace.shapes import ModuleShape
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.budgeted import Choice, budget_layer
from sharespace.subspace.layers import Build, LayerResult, build_layer, read_pairs, read_updates
from sharespace.subspace.merge_layer import Side, known_tasks, merge_layer
from sharespace.subspace.state import ShareModel
from sharespace.subspace.streamed import (
    TooWideError,
    build_bytes,
    build_streamed,
    merge_bytes,
    merge_streamed,
)

DEFAULT_MEMORY = 2_000_000_000
"""Bytes that one layer of all adapters may take where nothing else is said."""


def make_layer(
    module: str,
    shape: ModuleShape,
    members: Sequence[Adapter],
    build: Build,
    choice: Choice | None = None,
) -> LayerResult:
    """One layer of a Share model from all the adapters that adapt it.

    Args:
        choice: how a byte budget stores it.

    Raises:
        CorruptAdapterError: a factor holds NaN or infinity, or numbers too large to compute with.
        OptionError: it does not fit in the memory that was given, and cannot be built out of core.
    """
    needed, memory = build_bytes(members, module), build.memory or DEFAULT_MEMORY
    if needed <= memory:
        return _in_memory(module, shape, members, build, choice)
    why = _why_in_memory(build)
    if why is None:
        try:
            return build_streamed(module, shape, members, build, memory)
        except TooWideError as error:
            why = f"the explained variance needs {error}"
    _refuse(module, build, needed, why)
    return _in_memory(module, shape, members, build, choice)


def _in_memory(
    module: str,
    shape: ModuleShape,
    members: Sequence[Adapter],
    build: Build,
    choice: Choice | None,
) -> LayerResult:
    if choice is not None:
        return budget_layer(module, shape, members, build, choice)
    return build_layer(module, shape, members, build)


def merge_one_layer(
    model: ShareModel, module: str, members: Sequence[Adapter], build: Build
) -> LayerResult:
    """One layer of a model with newcomers in it.

    Raises:
        CorruptAdapterError: a factor holds NaN or infinity, or numbers too large to compute with.
        OptionError: as ``make_layer``.
    """
    needed, memory = merge_bytes(members, module), build.memory or DEFAULT_MEMORY
    share = build.settings.method == "share"
    if needed > memory and not share:
        known = known_tasks(model, module, build.device)
        return merge_streamed(model.layers[module], known, members, module, build, memory)
    if needed > memory:
        _refuse(module, build, needed, _SHARE)
    updates = read_updates(members, module, build.device)
    # Only the paper's method depends on how an update is split between its factors.
    pairs = list(read_pairs(members, module, build.device)) if share else []
    framed = framed_updates(updates, pairs)
    return merge_layer(model, module, Side(tuple(a.name for a in members), framed, updates.norms))


_SHARE = "method 'share' needs the factors of all adapters at once"


def _why_in_memory(build: Build) -> str | None:
    """Why a layer can only be built in memory; None where it need not."""
    dimension = build.dimension
    if build.settings.method == "share":
        return _SHARE
    if dimension.budget is not None:
        return "a byte budget looks at every direction of every adapter"
    if dimension.error is not None:
        return "a largest error looks at every direction of every adapter"
    if dimension.variance == 1.0:
        return "a variance of 1 keeps every direction of every adapter"
    return None


def _refuse(module: str, build: Build, needed: int, why: str) -> None:
    """Memory that was asked for is kept to; what nobody asked for is only a default.

    Raises:
        OptionError: see ``make_layer``.
    """
    if build.memory is not None:
        raise OptionError(
            f"memory of {build.memory:,} bytes",
            f"module {module!r} takes {needed:,}, and {why}",
            f"Give {needed:,}, leave the memory out, or use method joint with k or a variance "
            "below 1: these are built out of core",
        )
