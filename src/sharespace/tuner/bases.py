"""Where the Share model that a configuration names comes from."""

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
"""Start of the names that ``publish`` gives."""

_PUBLISHED: WeakValueDictionary[str, ShareModel] = WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class Bases:
    """A Share model that was found, and how to find it again."""

    model: ShareModel
    version: int | None
    """Of the store; None where it came from memory."""
    id: str
    """``basis_id`` of the model."""


def publish(model: ShareModel) -> str:
    """A name under which ``ShareConfig(share=...)`` finds a model that is in memory.

    It lasts as long as the model itself is referred to, and only in this process: an adapter
    trained with it is loaded elsewhere by giving ``share`` anew (a path), or with ``save_basis``.
    """
    # The address: two models may have the same bases and different tasks.
    name = f"{MEMORY}{basis_id(model)}-{id(model):x}"
    _PUBLISHED[name] = model
    return name


def find(share: str, version: int | None, expected: str | None) -> Bases:
    """The Share model of that name.

    Args:
        share: path of a store, Hub id, or what ``publish`` gave.
        version: of the store; None: the current one.
        expected: id of the bases that coefficients belong to; None: whatever is found.

    Raises:
        MismatchError: other bases are found than expected, or none (in memory).
        StoreError: the store cannot be read.
    """
    if share.startswith(MEMORY):
        found = Bases(_from_memory(share), None, "")
    else:
        opened = checkout(_folder(share), version)
        found = Bases(opened.model, opened.version.number, "")
    found = Bases(found.model, found.version, basis_id(found.model))
    if expected is not None and found.id != expected:
        at = f" version {found.version}" if found.version else ""
        raise MismatchError(
            f"Share model {share!r}{at}",
            f"has the bases {found.id[:12]}, but the coefficients belong to {expected[:12]}",
            "Give the Share model and share_version that the adapter was trained in",
        )
    return found


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
