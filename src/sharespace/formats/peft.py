"""Adapters as PEFT saves them: ``adapter_config.json`` beside ``adapter_model.*``.

Keys are ``base_model.model.<module>.lora_{A,B}.weight``; all else (heads under their plain names,
biases, ``lora_embedding_{A,B}``, ``lora_magnitude_vector`` ...) is kept. A kept tensor's key is the
file's, but for an adapter name in a LoRA key (``lora_A.default.weight``), which is taken out, and a
missing ``base_model.model.``, which is put in: PEFT loads neither of those.

Plain LoRA as a directory that ``PeftModel.from_pretrained`` loads.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.files import new_directory
from sharespace.formats.files import (
    SafetensorsFile,
    WeightsFile,
    parse_object,
    unreadable,
    write_tensors,
)
from sharespace.formats.lora_config import (
    CONFIG,
    FACTOR,
    METADATA,
    PREFIX,
    LoraScaling,
    check_rank,
    lora_scaling,
    parameter_of,
    refuse_other_updates,
    target_parameters,
)
from sharespace.formats.pairs import Contents, Pair, build_adapter, is_grouped, refuse_single
from sharespace.formats.plain import PlainLora, common_rank, split_components
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate, ModuleShape

NAMED = re.compile(r"\.lora_[AB]\.([^.]+)\.weight$")

LORA_PART = r"(\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))"

WEIGHTS = "adapter_model.safetensors"


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


def write_peft(
    directory: str | os.PathLike[str],
    updates: Mapping[str, LayerUpdate],
    *,
    shapes: Mapping[str, ModuleShape] | None = None,
    kept: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
    base: BaseModel | None = None,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a task as plain LoRA in PEFT's form (see ``plain``).

    Args:
        directory: where to; made whole or not at all.
        updates: module -> update, up n x r and down r x d of any rank and scaling.
        shapes: needed where a module is a convolution.
        kept: ``Adapter.kept`` or ``Task.kept``.
        config: ``Adapter.config`` or ``Task.config``; fields that the export does not set are
            handed on.
        base: the base model; None: what ``config`` says.
        rank: that all factors are padded to; None: the largest.
        dtype: of the factors; None: each as it is.
        overwrite: replace a directory that has something in it.

    Returns:
        The directories that hold an adapter: ``directory``, or one below it per component where
        the task came from a pipeline's adapter with several.

    Raises:
        OptionError: nothing to write, the rank is too small, or the directory is in use.
        CorruptAdapterError: a factor is not finite, or what was written reads back otherwise.
    """
    lora = PlainLora(updates, shapes or {}, kept or {}, config or {}, base)
    size = common_rank(updates, rank)
    parts = split_components(lora)
    target = Path(directory)
    with new_directory(target, overwrite=overwrite) as aside:
        for name, part in parts.items():
            folder = aside / name if len(parts) > 1 else aside
            folder.mkdir(exist_ok=True)
            write_folder(folder, part, part.tensors(size, dtype), part.fields(size))
    return [target / name for name in parts] if len(parts) > 1 else [target]


def write_folder(
    folder: Path, part: PlainLora, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]
) -> None:
    """Write weights and config into a folder that is there, and compare what reads back.

    Raises:
        CorruptAdapterError: a factor is not finite, or something else came back.
    """
    write_tensors(folder / WEIGHTS, tensors, part.header)
    text = json.dumps(fields, indent=2, sort_keys=True, allow_nan=False)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    file = SafetensorsFile.open(folder / WEIGHTS)
    adapter = read_peft(file, folder / CONFIG, name="written", source="")
    check_written(file, tensors, adapter, set(part.updates))


def check_written(
    file: SafetensorsFile, tensors: Mapping[str, Tensor], adapter: Adapter, modules: set[str]
) -> None:
    """Compare a written file with what was meant: names, shapes, dtypes, modules and scalings.

    Raises:
        CorruptAdapterError: something else came back than was written.
    """
    meant = {key: (tuple(t.shape), t.dtype) for key, t in tensors.items()}
    found = {key: (info.shape, info.dtype) for key, info in file.infos.items()}
    scalings = {adapter.layer(module).scaling for module in adapter.shapes}
    if meant != found or set(adapter.shapes) != modules or scalings != {1.0}:
        raise CorruptAdapterError(
            file.path.name, "reads back otherwise than it was written", "Report this as a bug"
        )
