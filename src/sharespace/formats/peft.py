"""Adapters as PEFT saves them: ``adapter_config.json`` beside ``adapter_model.*``.

Keys are ``base_model.model.<module>.lora_{A,B}.weight``; all else (heads under their plain names,
biases, ``lora_embedding_{A,B}``, ``lora_magnitude_vector`` ...) is kept. A kept tensor's key is the
file's, but for an adapter name in a LoRA key (``lora_A.default.weight``), which is taken out, and a
missing ``base_model.model.``, which is put in: PEFT loads neither of those.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.formats.lora_config import (
    FACTOR, METADATA, PREFIX,
    LoraScaling,
    check_rank,
    lora_scaling,
    parameter_of,
    refuse_other_updates,
    target_parameters,
)
from sharespace.formats.pairs import Contents, Pair, build_adapter, is_grouped, refuse_single
from sharespace.formats.strict_json import parse_object
from sharespace.formats.tensors import WeightsFile, unreadable
from sharespace.subspace.adapter import Adapter, BaseModel

NAMED = re.compile(r"\.lora_[AB]\.([^.]+)\.weight$")
LORA_PART = r"(\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))"


def read_peft(file: WeightsFile, config_file: Path, *, name: str, source: str) -> Adapter:
    """Read a PEFT adapter.

    Args:
        file: the weights.
        config_file: its ``adapter_config.json``.
        name: of the adapter.
        source: what its provenance says.

    Raises:
        CorruptAdapterError: broken config, or tensors that don't fit it or each other.
        UnsupportedAdapterError: something in it can't be kept exactly.
    """
    where = str(config_file)
    config = read_config(config_file)
    refuse_other_updates(where, config)
    scaling = lora_scaling(where, config)
    contents = sort_keys(file, peft_keys(file), config, scaling)
    adapter = build_adapter(
        file,
        contents,
        name=name,
        format="peft",
        base=_base(where, config),
        config=config | header_entries(file),
        source=source,
    )
    for module, rank in adapter.ranks.items():
        check_rank(where, scaling, module, rank)
    return adapter


def read_config(path: Path) -> dict[str, Any]:
    """The fields of an ``adapter_config.json``.

    Raises:
        CorruptAdapterError: it can't be read, or is no JSON object.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    return parse_object(path, data)


def header_entries(file: WeightsFile) -> dict[str, Any]:
    """The weights file's own header entries, but for the ``format`` that all have."""
    extra = {key: value for key, value in file.metadata.items() if key != "format"}
    return {METADATA: extra} if extra else {}


def peft_keys(file: WeightsFile) -> dict[str, str]:
    """Key as PEFT writes it -> key in the file.

    Raises:
        UnsupportedAdapterError: the file holds several adapters.
        CorruptAdapterError: two keys are the same tensor's.
    """
    plain = without_adapter_name(file)
    found = {k if k.startswith("base_model.") else PREFIX + k: raw for k, raw in plain.items()}
    if len(found) < len(plain):
        raise CorruptAdapterError(
            str(file.path), f"tensors with and without {PREFIX!r} are the same", "Drop one"
        )
    return found


def without_adapter_name(file: WeightsFile) -> dict[str, str]:
    """Key without the name in ``lora_A.<name>.weight`` -> key in the file.

    Raises:
        UnsupportedAdapterError: the file holds several adapters.
        CorruptAdapterError: two keys are the same tensor's.
    """
    name = _adapter_name(file)
    if name is None:
        return {key: key for key in file.infos}
    found = {_without_name(key, name): key for key in file.infos}
    if len(found) < len(file.infos):
        raise CorruptAdapterError(
            str(file.path), f"tensors with and without the name {name!r} are the same", "Drop one"
        )
    return found


def sort_keys(
    file: WeightsFile,
    keys: Mapping[str, str],
    config: Mapping[str, Any],
    scaling: LoraScaling,
) -> Contents:
    """Which keys are factor pairs of a module, and which are kept.

    Args:
        file: the weights.
        keys: key as PEFT writes it -> key in the file.
        config: of the adapter.
        scaling: read from the config.

    Raises:
        CorruptAdapterError: a factor's key names no module.
        UnsupportedAdapterError: a factor without its partner.
    """
    factors: dict[str, dict[str, str]] = {}
    for key in keys:
        if match := FACTOR.fullmatch(key):
            if match[1] + "." == PREFIX:
                raise CorruptAdapterError(str(file.path), f"{key!r} names no module", "Drop it")
            factors.setdefault(match[1].removeprefix(PREFIX), {})[match[2]] = keys[key]
    parameters = target_parameters(str(file.path), config)
    pairs = {}
    for module, found in factors.items():
        refuse_single(file, module, found.values())
        pair = Pair(found["A"], found["B"], scaling.scaling(module))
        if not parameter_of(module, parameters) and not is_grouped(file, pair):
            pairs[module] = pair
    used = {key for pair in pairs.values() for key in (pair.down, pair.up)}
    return Contents(pairs, {key: raw for key, raw in keys.items() if raw not in used})


def _adapter_name(file: WeightsFile) -> str | None:
    names = {match[1] for key in file.infos if (match := NAMED.search(key))}
    if len(names) > 1:
        raise UnsupportedAdapterError(
            str(file.path),
            f"holds several adapters: {', '.join(sorted(names))}",
            "Save each one with PEFT's save_pretrained, into a folder of its own",
        )
    return names.pop() if names else None


def _without_name(key: str, name: str) -> str:
    return re.sub(rf"{LORA_PART}\.{re.escape(name)}(?=\.|$)", r"\1", key)


def _base(where: str, config: Mapping[str, Any]) -> BaseModel:
    for field in ("base_model_name_or_path", "revision"):
        if not isinstance(config.get(field), (str, type(None))):
            raise CorruptAdapterError(where, f"{field} is {config[field]!r}", "It is a text")
    return BaseModel(config.get("base_model_name_or_path") or None, config.get("revision") or None)
