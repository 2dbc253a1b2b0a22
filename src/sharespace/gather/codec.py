"""Contribution <-> the bytes of its file (docs/format.md, "Contributions").

The header of a contribution's file: found, and believed only as far as it was checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from sharespace.errors import ContributionError, CorruptStoreError, MismatchError, StoreError
from sharespace.gather.contribution import (
    NAME,
    Basis,
    Contribution,
    Coordinates,
    Plain,
    Update,
    check_kept,
    check_task_name,
    check_tensor,
    check_updates,
)
from sharespace.store.layout import SHA256, corrupt
from sharespace.store.objects import METADATA_KEY, tensor_file
from sharespace.strict_json import JsonFields, parse_json
from sharespace.subspace.adapter import BaseModel, ModuleShape, Provenance

_COORDINATES = ("left", "right", "left_temporary", "right_temporary")

_FACTORS = ("up", "down")

_KEPT, _UPDATE, _SCALINGS = "kept.", "update.", "scalings"

FORMAT = "sharespace-contribution"

SCHEMA_VERSION = 1

MAX_HEADER = 1 << 24
"""Bytes of a file's JSON header."""

AGAIN = "Hand it in again"


def encode(found: Contribution) -> tuple[str, bytes]:
    """File name and bytes; equal contributions give equal bytes, and so one name.

    Raises:
        ContributionError: something in it cannot be handed in: NaN, shapes, a name.
    """
    check_task_name(found.task)
    tensors = _tensors(found)
    try:
        data = b"".join(tensor_file("task", tensors, None).blocks())
        digest = hashlib.sha256(data[data_start(data) :]).hexdigest()
        value = _metadata(found, digest)
        text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
        whole = b"".join(tensor_file("task", tensors, text).blocks())
    except (StoreError, TypeError, ValueError, RecursionError) as error:
        why = error.why if isinstance(error, StoreError) else f"its configuration: {error}"
        raise ContributionError(f"task {found.task!r}", why, "Correct it") from error
    name = f"contribution-{hashlib.sha256(whole).hexdigest()}.safetensors"
    decode(whole, name)  # what would be refused on arrival is refused here
    return name, whole


def decode(data: bytes, name: str) -> Contribution:
    """The contribution in a file, checked as far as it can be without the Share model.

    Args:
        data: all bytes of the file.
        name: of the file; a hash in it must be that of the bytes.

    Raises:
        ContributionError: damaged, of a newer schema, or with values that cannot be merged.
    """
    check_hash(data, name)
    try:
        make_error = partial(corrupt, name)
        fields = JsonFields(parse_json(metadata_bytes(data), make_error), make_error)
        check_marks(fields)
        if hashlib.sha256(data[data_start(data) :]).hexdigest() != fields.text("data_sha256"):
            raise ContributionError(name, "its tensors are not those that were written", AGAIN)
        return _contribution(fields, load(data), name)
    except CorruptStoreError as error:
        raise ContributionError(name, error.why, AGAIN) from error
    except SafetensorError as error:
        why = f"not a whole safetensors file ({error})"
        raise ContributionError(name, why, AGAIN) from error
    except MismatchError as error:
        raise ContributionError(name, f"{error.what}: {error.why}", AGAIN) from error


def _metadata(found: Contribution, data_sha256: str) -> dict[str, object]:
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "task": found.task,
        "base_model": {**asdict(found.base), "fingerprint": found.fingerprint},
        "basis": found.basis and asdict(found.basis),
        "modules": [_module_to_json(m, update) for m, update in found.updates.items()],
        "config": dict(found.config),
        "provenance": asdict(found.provenance),
        "data_sha256": data_sha256,
    }


def _module_to_json(module: str, update: Update) -> dict[str, object]:
    if isinstance(update, Coordinates):
        return {"module": module}
    return {"module": module, "kind": update.shape.kind, "kernel": list(update.shape.kernel)}


def _tensors(found: Contribution) -> dict[str, Tensor]:
    tensors = {_KEPT + key: value for key, value in found.kept.items()}
    for module, update in found.updates.items():
        for part in _COORDINATES if isinstance(update, Coordinates) else _FACTORS:
            value = getattr(update, part)
            if value is not None:
                tensors[f"{_UPDATE}{module}.{part}"] = value
    if found.basis is None:
        scalings = [u.scaling for u in found.updates.values() if isinstance(u, Plain)]
        tensors[_SCALINGS] = torch.tensor(scalings, dtype=torch.float64)
    return tensors


def _contribution(fields: JsonFields, tensors: dict[str, Tensor], name: str) -> Contribution:
    base, source = fields.child("base_model"), fields.child("provenance")
    basis = None if fields.is_null("basis") else _basis(fields.child("basis"))
    updates = _updates(fields, tensors, basis)
    kept = {key.removeprefix(_KEPT): tensors.pop(key) for key in [*tensors] if key[:5] == _KEPT}
    if tensors:
        raise ContributionError(name, f"unknown tensors: {sorted(tensors)[:3]}", AGAIN)
    check_updates(updates)
    check_kept(kept)
    found = Contribution(
        task=fields.text("task"),
        base=BaseModel(base.text_or_null("id"), base.text_or_null("revision")),
        fingerprint=base.text_or_null("fingerprint"),
        basis=basis,
        updates=updates,
        kept=kept,
        config=fields.mapping("config"),
        provenance=Provenance(
            source.text("format"), source.text("source"), source.text_or_null("sha256")
        ),
    )
    check_task_name(found.task)
    return found


def _basis(fields: JsonFields) -> Basis:
    return Basis(fields.text("id", SHA256), fields.whole_or_null("version", least=1))


def _updates(
    fields: JsonFields, tensors: dict[str, Tensor], basis: Basis | None
) -> Mapping[str, Update]:
    """The modules' updates; their tensors are taken out of ``tensors``."""
    entries = fields.children("modules")
    names = [entry.text("module") for entry in entries]
    if len(set(names)) < len(names) or "" in names or not names:
        fields.wrong("modules", "none, one without a name, or one that stands there twice")
    if basis is not None:
        return {m: _coordinates(m, tensors) for m in names}
    scalings = check_tensor(_SCALINGS, _take(tensors, _SCALINGS), 1)
    if len(scalings) != len(names):
        fields.wrong("modules", f"{len(names)} of them, but {len(scalings)} scalings")
    return {
        m: _plain(m, entry, tensors, float(s))
        for m, entry, s in zip(names, entries, scalings, strict=True)
    }


def _coordinates(module: str, tensors: dict[str, Tensor]) -> Coordinates:
    keys = {part: f"{_UPDATE}{module}.{part}" for part in _COORDINATES}
    left, right = _take(tensors, keys["left"]), _take(tensors, keys["right"])
    temporary = [tensors.pop(keys[part], None) for part in _COORDINATES[2:]]
    return Coordinates(left, right, *temporary)


def _plain(module: str, fields: JsonFields, tensors: dict[str, Tensor], scaling: float) -> Plain:
    up, down = (
        check_tensor(f"{module}.{part}", _take(tensors, f"{_UPDATE}{module}.{part}"), 2)
        for part in _FACTORS
    )
    kind = fields.one_of("kind", "linear", "conv")
    shape = ModuleShape(
        up.shape[0],
        down.shape[1],
        "conv" if kind == "conv" else "linear",
        fields.wholes("kernel", least=1),
    )
    return Plain(up, down, scaling, shape)


def _take(tensors: dict[str, Tensor], key: str) -> Tensor:
    if key not in tensors:
        raise ContributionError("the file", f"tensor {key!r} is missing", AGAIN)
    return tensors.pop(key)


def check_hash(data: bytes, name: str) -> None:
    """Refuse bytes that are not those of the hash in the file's name, where there is one."""
    match = NAME.fullmatch(name)
    if match and hashlib.sha256(data).hexdigest() != match["sha256"]:
        why = "its bytes are not those that its name says (sha256): damaged, or cut short"
        raise ContributionError(name, why, AGAIN)


def data_start(data: bytes) -> int:
    """Where the tensors begin."""
    return 8 + int.from_bytes(data[:8], "little")


def metadata_bytes(data: bytes) -> bytes:
    """The JSON text in a file's header; read by us, because libraries hide duplicate keys.

    Raises:
        ContributionError: no safetensors file, cut short, or not a contribution.
        CorruptStoreError: the header is not JSON.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or data[8:9] != b"{":
        raise ContributionError("the file", "not a safetensors file", AGAIN)
    if size > MAX_HEADER:
        why = f"a header of {size} bytes, more than the {MAX_HEADER} it may have"
        raise ContributionError("the file", why, "Leave out what is no contribution")
    if size > len(data) - 8:
        why = f"cut short: {len(data)} bytes with a header of {size}"
        raise ContributionError("the file", why, AGAIN)
    header = parse_json(data[8 : 8 + size], partial(corrupt, "the header"))
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        why = "a safetensors file, but not a contribution"
        raise ContributionError("the file", why, "`sharespace submit` makes contributions")
    return text.encode("utf-8", "surrogatepass")


def check_marks(fields: JsonFields) -> None:
    """Refuse other formats, and schema versions that this release does not read."""
    fields.one_of("format", FORMAT)
    found = fields.whole("schema_version", least=1)
    if found > SCHEMA_VERSION:
        why = f"written in schema version {found}; this release reads up to {SCHEMA_VERSION}"
        raise ContributionError("the file", why, "Upgrade: pip install -U sharespace")
