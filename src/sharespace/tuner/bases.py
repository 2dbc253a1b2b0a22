"""Find the Share model that a ``ShareConfig`` names: in memory, on disk or on the Hub.

An adapter that carries its bases in its own file needs none: its configuration has the sizes of
every module (``layout``), and the file fills them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import nn

from sharespace.errors import CorruptAdapterError, MismatchError, OptionError, StoreNotFoundError
from sharespace.formats import download_store
from sharespace.store import Checkout, checkout
from sharespace.subspace.adapter import ModuleShape
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.naming import unwrapped
from sharespace.subspace.state import ShareModel, basis_id
from sharespace.tuner.start import KnownUpdates, StartValues
from sharespace.tuner.subspace_layer import SubspaceLayer, sides

MEMORY = "memory:"
"""Names that ``publish`` gives begin with this."""

_PUBLISHED: WeakValueDictionary[str, ShareModel] = WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class LocatedShare:
    """A Share model, and what a configuration keeps to find the same one again."""

    model: ShareModel
    """The model that was found."""
    version: int | None
    """Version of the store; None where the model came from memory."""
    basis_id: str
    """``basis_id`` of the model: coefficients belong to one id."""


def publish(model: ShareModel) -> str:
    """A name under which ``ShareConfig(share=...)`` finds a model that is in memory.

    It lasts as long as the model itself is referred to, and only in this process: an adapter
    trained with it is loaded elsewhere by giving ``share`` anew (a path), or with ``save_basis``.

    Args:
        model: for example ``share.model``.

    Returns:
        The name.
    """
    # The address as well: two models may have the same bases and different tasks.
    name = f"{MEMORY}{basis_id(model)}-{id(model):x}"
    _PUBLISHED[name] = model
    return name


def locate_share(share: str, version: int | None, expected: str | None) -> LocatedShare:
    """The Share model of that name, checked to have the bases that are expected.

    Args:
        share: path of a store, Hub id, or what ``publish`` gave.
        version: of the store; None: the current one.
        expected: id of the bases that coefficients belong to; None: any.

    Raises:
        MismatchError: it has other bases than expected, or is no longer in memory.
        StoreError: the store cannot be read.
    """
    if share.startswith(MEMORY):
        model, number = _from_memory(share), None
    else:
        opened = _checked_out(share, version, expected)
        model, number = opened.model, opened.version.number
    actual = basis_id(model)
    if expected is not None and actual != expected:
        at = f" version {number}" if number else ""
        raise MismatchError(
            f"Share model {share!r}{at}",
            f"has the bases {actual[:12]}, but the coefficients belong to {expected[:12]}",
            "Give the Share model and share_version that the adapter was trained in",
        )
    return LocatedShare(model, number, actual)


def _checked_out(share: str, version: int | None, expected: str | None) -> Checkout:
    """The stored Share model; of coefficients whose bases are not there it is said what helps."""
    try:
        return checkout(_folder(share), version)
    except StoreNotFoundError as error:
        if expected is None:
            raise
        raise StoreNotFoundError(
            error.what,
            f"{error.why.rstrip('.')}. The coefficients belong to its bases ({expected[:12]})",
            "Load with config=ShareConfig.from_pretrained(ADAPTER) whose share is a copy of the "
            "Share model that still has that version; save_basis=True keeps bases with an adapter",
        ) from error


def _from_memory(share: str) -> ShareModel:
    try:
        return _PUBLISHED[share]
    except KeyError:
        raise MismatchError(
            f"Share model {share!r}",
            "was in the memory of another process, or is gone",
            "Save it and load with ShareConfig(share=PATH), or train with save_basis=True",
        ) from None


def _folder(share: str) -> Path:
    if not share:
        raise OptionError("share ''", "it is empty", "Name a Share model's path or Hub id")
    if os.path.lexists(share):
        return Path(share).absolute()
    return download_store(share)


def layout(model: nn.Module, adapter: str) -> dict[str, list[int]]:
    """Module -> [n, d, k_left, k_right, p, phi_left, phi_right, core] of an adapter.

    The last is 1 for the form "core" and 0 for "factors". A task that starts from known ones has
    three more: how many they are, columns of each, directions outside of the bases.
    """
    sizes: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, SubspaceLayer) and module.has(adapter):
            n, k_left = module.left_basis.shape
            d, k_right = module.right_basis.shape
            left = module.sharespace_left_coefficients[adapter]
            right = module.sharespace_right_coefficients[adapter]
            temporary = [left.shape[0] - k_left, right.shape[0] - k_right]
            core = int(adapter in module.sharespace_core)
            sizes[unwrapped(name)] = [n, d, k_left, k_right, left.shape[1], *temporary, core]
            if module.starts_from_known(adapter):
                known = module.sharespace_known_left[adapter]
                count = len(module.sharespace_known_weights[adapter])
                columns, outside = known.shape[1] // count, known.shape[0] - k_left
                sizes[unwrapped(name)] += [count, columns, outside]
    return sizes


def empty(sizes: Mapping[str, Sequence[int]], key: str) -> tuple[LayerSubspace, StartValues]:
    """Room for one module's bases and values, which the file then fills.

    Bases are NaN until then: what is computed without them cannot pass for a result.

    Raises:
        CorruptAdapterError: the configuration has no sizes for the module.
    """
    if key not in sizes:
        raise CorruptAdapterError(f"module {key!r}", "adapter_config.json has no layout for it")
    n, d, k_left, k_right, p, phi_left, phi_right, core, *start = map(int, sizes[key])
    layer = LayerSubspace(
        ModuleShape(n, d), torch.full((n, k_left), torch.nan), torch.full((d, k_right), torch.nan)
    )
    return layer, StartValues(
        torch.zeros(k_left + phi_left, p),
        torch.zeros(k_right + phi_right, p),
        torch.zeros(n, phi_left),
        torch.zeros(d, phi_right),
        torch.zeros(p, p) if core else None,
        _empty_known((n, d), (k_left, k_right), *start) if start else None,
    )


def _empty_known(
    sides: tuple[int, int], k: tuple[int, int], count: int, columns: int, outside: int
) -> KnownUpdates:
    """Room for the updates of known tasks."""
    left, right = (torch.zeros(size + outside, count * columns) for size in k)
    own_left, own_right = (torch.zeros(side, outside) for side in sides)
    return KnownUpdates(left, right, own_left, own_right, torch.zeros(count))


def layer_name(model: ShareModel, key: str, component: str | None) -> str:
    """The Share model's name for a module of this model.

    Raises:
        MismatchError: the Share model has no subspace for it.
    """
    name = f"{component}.{key}" if component else key
    if name not in model.layers:
        known = ", ".join(list(model.layers)[:3])
        raise MismatchError(
            f"module {name!r}",
            f"the Share model has no subspace for it (it has {known}, ...)",
            "Choose target_modules among those, set component, or merge an adapter that has it",
        )
    return name


def check_shape(key: str, module: nn.Module, layer: LayerSubspace) -> None:
    """Refuse a module of another shape than the subspace was made for.

    Raises:
        MismatchError: its sides are others.
    """
    shape = layer.shape
    if sides(module) != (shape.out_features, shape.in_features):
        raise MismatchError(
            f"module {key!r}",
            f"is {type(module).__name__} of {sides(module)}, but its subspace is for {shape}",
            "Use the base model that the Share model belongs to",
        )
