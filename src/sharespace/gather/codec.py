"""A contribution as the bytes of its file, and back (docs/format.md, "Contributions")."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from sharespace.errors import ContributionError, MismatchError, StoreError
from sharespace.gather.contribution import (
    NAME,
    BasisReference,
    Contribution,
    Coordinates,
    ModuleUpdate,
    PlainFactors,
    check_files,
    check_kept,
    check_samples,
    check_task_name,
    check_tensor,
)
from sharespace.store.objects import METADATA_KEY, tensor_file
from sharespace.store.schema import SHA256
from sharespace.strict_json import JsonFields, parse_json
from sharespace.subspace.adapter import BaseModel, ModuleShape, Provenance

_FORMAT = "sharespace-contribution"
_SCHEMA_VERSION = 2
"""The highest that is read. A contribution is written in the lowest that can say it: 2 where it
has files, labels or samples of the base weights, else 1."""
_KEPT, _UPDATE, _SCALINGS = "kept.", "update.", "scalings"
_FILE, _BASE = "file.", "base."

_MAX_HEADER = 1 << 24
"""Most bytes of a file's JSON header. It is parsed before anything in the file is trusted, and JSON
takes many times its own size in memory; a real header has some hundred bytes a module."""


def encode(contribution: Contribution) -> tuple[str, bytes]:
    """File name and bytes; equal contributions give equal bytes, and so one name.

    Raises:
        ContributionError: something in it cannot be handed in: NaN, shapes, a name.
    """
    task = f"task {contribution.task!r}"
    check_task_name(contribution.task)
    tensors = _tensors(contribution)
    try:
        # The hash of the tensors stands in the header before them, so the file is made twice: the
        # header does not change the bytes behind it.
        data = b"".join(tensor_file("task", tensors, None).blocks())
        digest = hashlib.sha256(data[_data_start(data) :]).hexdigest()
        value = _metadata(contribution, digest)
        text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
        whole = b"".join(tensor_file("task", tensors, text).blocks())
    except (StoreError, TypeError, ValueError, RecursionError) as error:
        why = error.why if isinstance(error, StoreError) else f"its configuration: {error}"
        raise ContributionError(task, why, "Correct it") from error
    name = f"contribution-{hashlib.sha256(whole).hexdigest()}.safetensors"
    decode(whole, name)  # What would be refused on arrival is refused here, where it can be mended.
    return name, whole


def _tensors(contribution: Contribution) -> dict[str, Tensor]:
    tensors = {_KEPT + key: value for key, value in contribution.kept.items()}
    tensors |= {_FILE + name: contribution.files[name] for name in contribution.files}
    tensors |= {_BASE + module: value for module, value in contribution.base_samples.items()}
    for module, update in contribution.updates.items():
        for field, value in update.tensors().items():
            tensors[f"{_UPDATE}{module}.{field}"] = value
    if contribution.basis is None:
        plain = (u for u in contribution.updates.values() if isinstance(u, PlainFactors))
        tensors[_SCALINGS] = torch.tensor([u.scaling for u in plain], dtype=torch.float64)
    return tensors


def _metadata(contribution: Contribution, data_sha256: str) -> dict[str, object]:
    modules = [_module_to_json(m, update) for m, update in contribution.updates.items()]
    return {
        "format": _FORMAT,
        "schema_version": _schema_version(contribution),
        **({"labels": list(contribution.labels)} if contribution.labels else {}),
        "task": contribution.task,
        "base_model": {**asdict(contribution.base), "fingerprint": contribution.fingerprint},
        "basis": contribution.basis and asdict(contribution.basis),
        "modules": modules,
        "config": dict(contribution.config),
        "provenance": asdict(contribution.provenance),
        "data_sha256": data_sha256,
    }


def _schema_version(contribution: Contribution) -> int:
    newer = contribution.files or contribution.labels or contribution.base_samples
    return 2 if newer else 1


def _module_to_json(module: str, update: ModuleUpdate) -> dict[str, object]:
    if isinstance(update, Coordinates):
        return {"module": module}
    return {"module": module, "kind": update.shape.kind, "kernel": list(update.shape.kernel)}


def decode(data: bytes, name: str) -> Contribution:
    """The contribution in a file, checked as far as it can be without the Share model.

    Args:
        data: all bytes of the file.
        name: of the file; a hash in it must be that of the bytes.

    Raises:
        ContributionError: damaged, of a newer schema, or with values that cannot be merged.
    """
    _check_hash(data, name)
    damaged = partial(_damaged, name)
    try:
        fields = JsonFields(parse_json(_metadata_bytes(data, name), damaged), damaged)
        _check_format(fields)
        # A second sum beside that in the file's name: somebody may have renamed the file.
        if hashlib.sha256(data[_data_start(data) :]).hexdigest() != fields.text("data_sha256"):
            raise damaged("its tensors are not those that were written")
        return _contribution(fields, _tensors_in(data, damaged), name)
    except SafetensorError as error:
        raise damaged(f"not a whole safetensors file ({error})") from error
    except MismatchError as error:
        raise damaged(f"{error.what}: {error.why}") from error


def _tensors_in(data: bytes, damaged: Callable[[str], ContributionError]) -> dict[str, Tensor]:
    try:
        return load(data)
    except KeyError as error:  # what safetensors raises for a dtype that torch does not have
        raise damaged(f"a tensor of dtype {error}, which cannot be kept") from error


def _damaged(what: str, why: str) -> ContributionError:
    return ContributionError(what, why, "Hand it in again")


def _check_hash(data: bytes, name: str) -> None:
    """Refuse bytes that are not those of the hash in the file's name, where there is one."""
    match = NAME.fullmatch(name)
    if match and hashlib.sha256(data).hexdigest() != match["sha256"]:
        why = "its bytes are not those that its name says (sha256): damaged, or cut short"
        raise _damaged(name, why)


def _metadata_bytes(data: bytes, name: str) -> bytes:
    """The JSON text in a file's header.

    It is read here and not by the safetensors library, because libraries take the last of two equal
    keys: two readers of one file could see two different contributions.

    Raises:
        ContributionError: no safetensors file, cut short, or not a contribution.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or data[8:9] != b"{":
        raise _damaged(name, "not a safetensors file")
    if size > _MAX_HEADER:
        why = f"a header of {size} bytes, more than the {_MAX_HEADER} it may have"
        raise ContributionError(name, why, "Leave out what is no contribution")
    if size > len(data) - 8:
        raise _damaged(name, f"cut short: {len(data)} bytes with a header of {size}")
    header = parse_json(data[8 : 8 + size], partial(_damaged, name))
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        why = "a safetensors file, but not a contribution"
        raise ContributionError(name, why, "`sharespace submit` makes contributions")
    # A lone surrogate in hostile text becomes bytes that the strict reader refuses, instead of an
    # error that would stop the gatherer here.
    return text.encode("utf-8", "surrogatepass")


def _data_start(data: bytes) -> int:
    """Offset of the tensors' bytes in a safetensors file: the header, and 8 bytes of its length."""
    return 8 + int.from_bytes(data[:8], "little")


def _check_format(fields: JsonFields) -> None:
    """Refuse other formats, and schema versions that this release does not read."""
    fields.one_of("format", _FORMAT)
    version = fields.whole("schema_version", least=1)
    if version > _SCHEMA_VERSION:
        why = f"written in schema version {version}; this release reads up to {_SCHEMA_VERSION}"
        raise ContributionError("the file", why, "Upgrade: pip install -U sharespace")


def _contribution(fields: JsonFields, tensors: dict[str, Tensor], name: str) -> Contribution:
    base, source = fields.child("base_model"), fields.child("provenance")
    basis = None if fields.is_null("basis") else _basis(fields.child("basis"))
    updates = _updates(fields, tensors, basis)
    kept_tensors, files, samples = (_take_all(tensors, start) for start in (_KEPT, _FILE, _BASE))
    # What nobody asked for would be lost without a word: refuse it.
    if tensors:
        raise _damaged(name, f"unknown tensors: {sorted(tensors)[:3]}")
    for module, update in updates.items():
        update.check(module)
    check_kept(kept_tensors)
    check_files(files)
    check_samples(samples)
    contribution = Contribution(
        task=fields.text("task"),
        base=BaseModel(base.text_or_null("id"), base.text_or_null("revision")),
        fingerprint=base.text_or_null("fingerprint"),
        basis=basis,
        updates=updates,
        kept=kept_tensors,
        files=files,
        labels=fields.texts("labels") if fields.has("labels") else (),
        base_samples=samples,
        config=fields.mapping("config"),
        provenance=Provenance(
            source.text("format"), source.text("source"), source.text_or_null("sha256")
        ),
    )
    check_task_name(contribution.task)
    return contribution


def _basis(fields: JsonFields) -> BasisReference:
    return BasisReference(fields.text("id", SHA256), fields.whole_or_null("version", least=1))


def _updates(
    fields: JsonFields, tensors: dict[str, Tensor], basis: BasisReference | None
) -> Mapping[str, ModuleUpdate]:
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
        m: _plain_factors(m, entry, tensors, float(s))
        for m, entry, s in zip(names, entries, scalings, strict=True)
    }


def _coordinates(module: str, tensors: dict[str, Tensor]) -> Coordinates:
    return Coordinates(
        _take(tensors, f"{_UPDATE}{module}.left"),
        _take(tensors, f"{_UPDATE}{module}.right"),
        tensors.pop(f"{_UPDATE}{module}.left_temporary", None),
        tensors.pop(f"{_UPDATE}{module}.right_temporary", None),
    )


def _plain_factors(
    module: str, fields: JsonFields, tensors: dict[str, Tensor], scaling: float
) -> PlainFactors:
    up, down = (
        check_tensor(f"{module}.{part}", _take(tensors, f"{_UPDATE}{module}.{part}"), 2)
        for part in ("up", "down")
    )
    shape = ModuleShape(
        up.shape[0],
        down.shape[1],
        "conv" if fields.one_of("kind", "linear", "conv") == "conv" else "linear",
        fields.wholes("kernel", least=1),
    )
    return PlainFactors(up, down, scaling, shape)


def _take_all(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    """All tensors whose keys begin so, without that beginning; they are taken out."""
    keys = [key for key in tensors if key.startswith(start)]
    return {key.removeprefix(start): tensors.pop(key) for key in keys}


def _take(tensors: dict[str, Tensor], key: str) -> Tensor:
    if key not in tensors:
        raise _damaged("the file", f"tensor {key!r} is missing")
    return tensors.pop(key)
