"""Hand in: one file in an inbox, whole or not at all.

A contribution from an adapter's directory: trained in a subspace, or plain LoRA.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sharespace.errors import ContributionError, CorruptAdapterError, OptionError, StoreError
from sharespace.formats import default_name, read_adapter
from sharespace.formats.files import SafetensorsFile
from sharespace.formats.hub import download_store
from sharespace.formats.lora_config import CONFIG, PREFIX
from sharespace.formats.peft import read_config
from sharespace.formats.registry import find_weights
from sharespace.gather.batch import expand
from sharespace.gather.codec import encode
from sharespace.gather.contribution import NAME, Basis, Contribution, Coordinates, Plain, Update
from sharespace.gather.inboxes import open_inbox
from sharespace.store import Checkout, checkout
from sharespace.subspace.adapter import LEARNED, Adapter, BaseModel, fingerprint
from sharespace.subspace.state import basis_id

_TYPE = "SHARESPACE"

_LEFT, _RIGHT, _CORE = (
    f"sharespace_{x}" for x in ("left_coefficients", "right_coefficients", "core")
)

_NEW_LEFT, _NEW_RIGHT = "sharespace_left_temporary", "sharespace_right_temporary"

_MINE = (_LEFT, _RIGHT, _CORE, _NEW_LEFT, _NEW_RIGHT)

_BASES = ("left_basis", "right_basis")

Modules = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Submission:
    """What was handed in."""

    task: str
    id: str
    """SHA-256 of the file; the same content has the same id, and comes in once."""
    inbox: str
    file: str
    """Name within the inbox."""
    bytes: int
    version: int | None
    """Of the Share model that it was trained in; None: plain factors."""


def submit(
    source: str | os.PathLike[str],
    inbox: str | os.PathLike[str],
    *,
    task: str | None = None,
    plain: bool = False,
    pull_request: bool = False,
) -> Submission:
    """Hand an adapter in.

    Args:
        source: its directory, as ``save_pretrained`` writes it; see ``read_contribution``.
        inbox: a folder (made where it is missing), ``hf://user/repo/folder``, or another URL such
            as ``s3://bucket/inbox``.
        task: its name; None: that of the ``ShareConfig``, or the folder's.
        plain: carry whole factors instead of coefficients in the bases of a version.
        pull_request: on the Hub: propose it to the repository's owner.

    Raises:
        AdapterError: the adapter cannot be read.
        ContributionError: it cannot be merged: NaN, a name like a path.
        InboxError: the inbox cannot be written.
    """
    found = read_contribution(source, task=task, plain=plain)
    return hand_in(found, inbox, pull_request=pull_request)


def hand_in(
    found: Contribution, inbox: str | os.PathLike[str], *, pull_request: bool = False
) -> Submission:
    """Put a contribution into an inbox; see ``submit``."""
    name, data = encode(found)
    place = open_inbox(inbox, create=True, pull_request=pull_request)
    place.write(name, data)
    match = NAME.fullmatch(name)
    id = match["sha256"] if match else ""
    version = found.basis.version if found.basis else None
    return Submission(found.task, id, place.where, name, len(data), version)


def read_contribution(
    source: str | os.PathLike[str], *, task: str | None = None, plain: bool = False
) -> Contribution:
    """What an adapter on disk contributes.

    Args:
        source: what ``save_pretrained`` wrote, of a model made with ``ShareConfig`` or of any
            adapter that ``read_adapter`` reads (PEFT, diffusers, kohya, a Hub id).
        task: its name; None: that of the ``ShareConfig``, or the folder's.
        plain: carry whole factors instead of coefficients: larger, and independent of the history
            of the store. An adapter that is not of a Share model always does.

    Raises:
        AdapterError: it cannot be read.
        ContributionError: bases are needed (``plain``) and not found.
    """
    folder = Path(source)
    config = read_config(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if config.get("peft_type") == _TYPE:
        return _from_share(folder, config, task, plain)
    return _from_adapter(read_adapter(source, task or default_name(source)))


def _from_adapter(found: Adapter) -> Contribution:
    updates: dict[str, Update] = {}
    for module, shape in found.shapes.items():
        read = found.layer(module)
        updates[module] = Plain(read.up, read.down, float(read.scaling), shape)
    return Contribution(
        found.name,
        found.base,
        fingerprint(found.shapes),
        None,
        updates,
        {key: found.kept[key] for key in found.kept},
        found.config,
        found.provenance,
    )


def _from_share(
    folder: Path, config: Mapping[str, Any], task: str | None, plain: bool
) -> Contribution:
    modules, kept = _read(find_weights(folder), str(config.get("component") or ""))
    id, version = config.get("basis_id"), config.get("share_version")
    if not isinstance(id, str):
        raise CorruptAdapterError(str(folder / CONFIG), "it has no basis_id", "Save it again")
    basis = Basis(id, version)
    store = _local_store(config, basis)
    updates: dict[str, Update] = {m: _coordinates(folder, m, t) for m, t in modules.items()}
    if plain:
        updates = _multiplied(updates, store or _store(config, basis))
    shapes = {m: u.shape for m, u in updates.items() if isinstance(u, Plain)}
    print_of_store = store.manifest.content.fingerprint if store else None
    return Contribution(
        task=task or str(config.get("task") or default_name(folder)),
        base=_base(config, store),
        fingerprint=fingerprint(shapes) if plain else print_of_store,
        basis=None if plain else basis,
        updates=updates,
        kept=kept,
        config=_lora_fields(config, updates, bool(kept)),
        provenance=LEARNED,
    )


def _read(weights: Path, component: str) -> tuple[Modules, dict[str, Tensor]]:
    """(module -> part -> tensor, what is kept) of an adapter's file."""
    if weights.suffix != ".safetensors":
        why = "an adapter of a Share model that is not a safetensors file"
        raise CorruptAdapterError(str(weights), why, "Save it with safe_serialization=True")
    file = SafetensorsFile.open(weights)
    modules: Modules = {}
    kept: dict[str, Tensor] = {}
    for key in file.infos:
        path, _, part = key.rpartition(".")
        if part in _MINE:
            name = path.removeprefix(PREFIX)
            name = f"{component}.{name}" if component else name
            modules.setdefault(name, {})[part] = file.read(key)[0]
        elif part not in _BASES:
            kept[key] = file.read(key)[0]
    return modules, kept


def _coordinates(folder: Path, module: str, parts: Mapping[str, Tensor]) -> Coordinates:
    if _LEFT not in parts or _RIGHT not in parts:
        raise CorruptAdapterError(
            str(folder), f"module {module!r} lacks coefficients", "Save again"
        )
    left, right = parts[_LEFT], parts[_RIGHT]
    if _CORE in parts:
        left = (left.double() @ parts[_CORE].double()).to(left.dtype)
    return Coordinates(left, right, parts.get(_NEW_LEFT), parts.get(_NEW_RIGHT))


def _local_store(config: Mapping[str, Any], basis: Basis) -> Checkout | None:
    """The version trained in, where the path in the configuration still leads to it."""
    share = config.get("share")
    if not isinstance(share, str) or not (Path(share) / "share.json").is_file():
        return None
    try:
        opened = checkout(Path(share).absolute(), basis.version)
        return opened if basis_id(opened.model) == basis.id else None
    except StoreError:
        return None  # only more detail is lost: the basis is named by its id


def _store(config: Mapping[str, Any], basis: Basis) -> Checkout:
    """The version trained in, wherever it is.

    Raises:
        ContributionError: it is not found.
    """
    share = config.get("share")
    remedy = "Give the adapter's configuration a share and share_version that has these bases"
    if not isinstance(share, str) or share.startswith("memory:"):
        why = (
            f"the bases {basis.id[:12]} were in memory only" if share else "it names no Share model"
        )
        raise ContributionError("--plain", why, remedy)
    opened = checkout(download_store(share), basis.version)
    if basis_id(opened.model) != basis.id:
        why = f"{share} has other bases than {basis.id[:12]}"
        raise ContributionError("--plain", why, remedy)
    return opened


def _multiplied(updates: Mapping[str, Update], store: Checkout) -> dict[str, Update]:
    found: dict[str, Update] = {}
    for module, update in updates.items():
        layer = store.model.layers.get(module)
        if layer is None or not isinstance(update, Coordinates):
            raise OptionError(f"module {module!r}", f"{store.path} has none of that name", "")
        up = expand(module, layer.left_basis, update.left, update.left_temporary)
        right = expand(module, layer.right_basis, update.right, update.right_temporary)
        dtype = update.left.dtype
        found[module] = Plain(up.to(dtype), right.mT.contiguous().to(dtype), 1.0, layer.shape)
    return found


def _base(config: Mapping[str, Any], store: Checkout | None) -> BaseModel:
    named = config.get("base_model_name_or_path")
    if named is None and store is not None:
        return store.model.base
    return BaseModel(named, config.get("revision"))


def _lora_fields(
    config: Mapping[str, Any], updates: Mapping[str, Update], heads: bool
) -> dict[str, object]:
    """What an export of the task as plain LoRA says of itself."""
    ranks = [
        u.left.shape[1] if isinstance(u, Coordinates) else u.up.shape[1] for u in updates.values()
    ]
    rank = max(ranks, default=0)
    return {
        "peft_type": "LORA",
        "task_type": config.get("task_type"),
        "bias": "none",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(updates),
        "modules_to_save": sorted(config.get("modules_to_save") or []) if heads else None,
    }
