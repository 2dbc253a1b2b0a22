"""Find the Share model that a ``ShareConfig`` names: in memory, on disk or on the Hub."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from sharespace.errors import MismatchError, OptionError
from sharespace.formats import download_store
from sharespace.store import checkout
from sharespace.subspace.state import ShareModel, basis_id

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
        opened = checkout(_folder(share), version)
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
