"""Hand in an adapter's directory as one file in an inbox, whole or not at all.

The adapter was trained in the bases of a Share model (``ShareConfig``), or is a plain LoRA.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sharespace.errors import ContributionError, CorruptAdapterError, StoreError
from sharespace.formats import default_name, read_adapter
from sharespace.formats.companions import FolderFiles
from sharespace.formats.format_registry import find_weights
from sharespace.formats.hub import download_store
from sharespace.formats.lora_config import CONFIG, PREFIX
from sharespace.formats.peft import read_config
from sharespace.formats.weights_file import SafetensorsFile
from sharespace.gather.codec import encode
from sharespace.gather.contribution import (
    NAME,
    BasisReference,
    Contribution,
    Coordinates,
    ModuleUpdate,
    PlainFactors,
    plain_updates,
)
from sharespace.gather.inboxes import open_inbox
from sharespace.store import Checkout, checkout
from sharespace.subspace.adapter import LEARNED, Adapter, BaseModel, fingerprint
from sharespace.subspace.naming import unwrapped
from sharespace.subspace.state import basis_id

_PEFT_TYPE = "SHARESPACE"
_LEFT, _RIGHT = "sharespace_left_coefficients", "sharespace_right_coefficients"
_CORE = "sharespace_core"
_NEW_LEFT, _NEW_RIGHT = "sharespace_left_temporary", "sharespace_right_temporary"
_KNOWN_LEFT, _KNOWN_RIGHT = "sharespace_known_left", "sharespace_known_right"
_KNOWN_WEIGHTS = "sharespace_known_weights"
_OUTSIDE_LEFT, _OUTSIDE_RIGHT = "sharespace_known_left_outside", "sharespace_known_right_outside"
_TRAINED = (
    *(_LEFT, _RIGHT, _CORE, _NEW_LEFT, _NEW_RIGHT),
    *(_KNOWN_LEFT, _KNOWN_RIGHT, _KNOWN_WEIGHTS, _OUTSIDE_LEFT, _OUTSIDE_RIGHT),
)
_BASES = ("left_basis", "right_basis")
"""Bases in the adapter's file (``save_basis=True``); a contribution leaves them out."""


def submit(
    source: str | os.PathLike[str],
    inbox: str | os.PathLike[str],
    *,
    task: str | None = None,
    plain: bool = False,
    pull_request: bool = False,
) -> Submission:
    """Hand an adapter in, for ``gather`` to merge.

    Args:
        source: its directory, as ``save_pretrained`` writes it; see ``read_contribution``.
        inbox: a folder (made where it is missing), ``hf://user/repo/folder``, or another URL such
            as ``s3://bucket/inbox``.
        task: its name; None: that of the ``ShareConfig``, or the folder's.
        plain: carry whole factors instead of coefficients in the bases of a version.
        pull_request: on the Hub: propose it to the repository's owner.

    Returns:
        The task, and the file that holds it.

    Raises:
        AdapterError: the adapter cannot be read.
        ContributionError: it cannot be merged: NaN, a name like a path.
        InboxError: the inbox cannot be written.
    """
    contribution = read_contribution(source, task=task, plain=plain)
    return hand_in(contribution, inbox, pull_request=pull_request)


def hand_in(
    contribution: Contribution, inbox: str | os.PathLike[str], *, pull_request: bool = False
) -> Submission:
    """Put a contribution into an inbox.

    Args:
        contribution: what to hand in.
        inbox: as for ``submit``.
        pull_request: on the Hub: propose it to the repository's owner.

    Raises:
        ContributionError: it cannot be merged: NaN, a name like a path.
        InboxError: the inbox cannot be written.
    """
    # Encoded first: what is refused leaves no new folder behind.
    name, data = encode(contribution)
    place = open_inbox(inbox, create=True, pull_request=pull_request)
    place.write(name, data)
    match = NAME.fullmatch(name)
    id = match["sha256"] if match else ""
    version = contribution.basis.version if contribution.basis else None
    return Submission(contribution.task, id, place.where, name, len(data), version)


@dataclass(frozen=True)
class Submission:
    """A contribution that was handed in."""

    task: str
    id: str
    """SHA-256 of the file; the same content has the same id, and comes in once."""
    inbox: str
    """Path or URL of the inbox."""
    file: str
    """Name of the file within the inbox."""
    bytes: int
    """Size of the file."""
    version: int | None
    """Version of the Share model that it was trained in; None: plain factors."""


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
    if config.get("peft_type") == _PEFT_TYPE:
        return _from_share(folder, config, task, plain)
    return _from_adapter(read_adapter(source, task or default_name(source)))


def _from_share(
    folder: Path, config: Mapping[str, Any], task: str | None, plain: bool
) -> Contribution:
    modules, kept_tensors = _read_weights(find_weights(folder), str(config.get("component") or ""))
    id, version = config.get("basis_id"), config.get("share_version")
    if not isinstance(id, str):
        raise CorruptAdapterError(str(folder / CONFIG), "it has no basis_id", "Save it again")
    basis = BasisReference(id, version)
    store = _local_store(config, basis)
    coordinates = {m: _coordinates(folder, m, tensors) for m, tensors in modules.items()}
    updates: Mapping[str, ModuleUpdate] = coordinates
    shapes_id = store.manifest.content.fingerprint if store else None
    if plain:
        trained_in = (store or _store(config, basis)).model
        updates = factors = plain_updates(coordinates, trained_in)
        shapes_id = fingerprint({m: u.shape for m, u in factors.items()})
    return Contribution(
        task=task or str(config.get("task") or default_name(folder)),
        base=_base(config, store),
        fingerprint=shapes_id,
        basis=None if plain else basis,
        updates=updates,
        kept=kept_tensors,
        files=FolderFiles(folder),
        config=_lora_fields(config, coordinates, bool(kept_tensors)),
        provenance=LEARNED,
    )


def _read_weights(
    weights: Path, component: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Module -> parameter -> tensor of what was trained, and key -> tensor of all that is kept."""
    if weights.suffix != ".safetensors":
        why = "an adapter of a Share model that is not a safetensors file"
        raise CorruptAdapterError(str(weights), why, "Save it with safe_serialization=True")
    file = SafetensorsFile.open(weights)
    modules: dict[str, dict[str, Tensor]] = {}
    kept_tensors: dict[str, Tensor] = {}
    for key in file.infos:
        path, _, parameter = unwrapped(key).rpartition(".")
        if parameter in _TRAINED:
            name = path.removeprefix(PREFIX)
            name = f"{component}.{name}" if component else name
            modules.setdefault(name, {})[parameter] = file.read(key)[0]
        elif parameter not in (*_BASES, "sharespace_basis_id"):
            kept_tensors[unwrapped(key)] = file.read(key)[0]
    return modules, kept_tensors


def _coordinates(folder: Path, module: str, tensors: Mapping[str, Tensor]) -> Coordinates:
    if _LEFT not in tensors or _RIGHT not in tensors:
        raise CorruptAdapterError(
            str(folder), f"module {module!r} lacks coefficients", "Save again"
        )
    left, right = tensors[_LEFT], tensors[_RIGHT]
    if _CORE in tensors:
        # left core right^T: with the core inside the left coefficients there is one form to merge.
        left = (left.double() @ tensors[_CORE].double()).to(left.dtype)
    new_left, new_right = tensors.get(_NEW_LEFT), tensors.get(_NEW_RIGHT)
    if _KNOWN_WEIGHTS in tensors:
        weights, known = tensors[_KNOWN_WEIGHTS], tensors[_KNOWN_LEFT]
        known = known * weights.repeat_interleave(known.shape[1] // len(weights))
        left, new_left = _with_known(left, new_left, known, tensors.get(_OUTSIDE_LEFT))
        known = tensors[_KNOWN_RIGHT]
        right, new_right = _with_known(right, new_right, known, tensors.get(_OUTSIDE_RIGHT))
    return Coordinates(left, right, new_left, new_right)


def _with_known(
    own: Tensor, temporary: Tensor | None, known: Tensor, outside: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Coefficients and directions of one side with those of known tasks that it starts from.

    Args:
        own: (k + phi) x p.
        temporary: n x phi, or None where phi = 0.
        known: (k + t) x r, rows of the same k directions first.
        outside: n x t, or None where t = 0.

    Returns:
        (k + phi + t) x (p + r), and n x (phi + t) or None.
    """
    phi, t = (0 if columns is None else columns.shape[1] for columns in (temporary, outside))
    k = len(own) - phi
    padded_own = torch.cat([own, own.new_zeros(t, own.shape[1])])
    padded = torch.cat([known[:k], known.new_zeros(phi, known.shape[1]), known[k:]])
    directions = [columns for columns in (temporary, outside) if columns is not None]
    joined = torch.cat(directions, dim=1) if directions else None
    return torch.cat([padded_own, padded.to(own)], dim=1), joined


def _local_store(config: Mapping[str, Any], basis: BasisReference) -> Checkout | None:
    """The version trained in, where the path in the configuration still leads to it."""
    share = config.get("share")
    if not isinstance(share, str) or not (Path(share) / "share.json").is_file():
        return None
    try:
        opened = checkout(Path(share).absolute(), basis.version)
        return opened if basis_id(opened.model) == basis.id else None
    except StoreError:
        return None  # Only the fingerprint is lost: the bases are named by their id.


def _store(config: Mapping[str, Any], basis: BasisReference) -> Checkout:
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


def _base(config: Mapping[str, Any], store: Checkout | None) -> BaseModel:
    named = config.get("base_model_name_or_path")
    if named is None and store is not None:
        return store.model.base
    return BaseModel(named, config.get("revision"))


def _lora_fields(
    config: Mapping[str, Any], coordinates: Mapping[str, Coordinates], heads: bool
) -> dict[str, object]:
    """Fields of the configuration that an export of the task as plain LoRA has."""
    rank = max((c.left.shape[1] for c in coordinates.values()), default=0)
    return {
        "peft_type": "LORA",
        "task_type": config.get("task_type"),
        "bias": "none",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(coordinates),
        "modules_to_save": sorted(config.get("modules_to_save") or []) if heads else None,
    }


def _from_adapter(adapter: Adapter) -> Contribution:
    updates: dict[str, ModuleUpdate] = {}
    for module, shape in adapter.shapes.items():
        update = adapter.layer(module)
        updates[module] = PlainFactors(update.up, update.down, float(update.scaling), shape)
    return Contribution(
        adapter.name,
        adapter.base,
        fingerprint(adapter.shapes),
        None,
        updates,
        dict(adapter.kept),
        adapter.config,
        files=adapter.files,
        labels=adapter.labels,
        base_samples=adapter.base_samples,
        provenance=adapter.provenance,
    )
