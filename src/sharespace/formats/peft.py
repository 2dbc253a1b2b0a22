"""PEFT's adapters: a folder with ``adapter_config.json`` beside ``adapter_model.*``.

Keys are ``base_model.model.<module>.lora_{A,B}.weight``; all else (heads under their plain names,
biases, ``lora_embedding_{A,B}``, ``lora_magnitude_vector`` ...) is kept. A kept tensor's key is
the file's, but for an adapter name in a LoRA key (``lora_A.default.weight``) and the parts that
wrappers put into paths (``_orig_mod``), which are taken out, and a missing ``base_model.model.``,
which is put in: PEFT loads none of those.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.files import export_directory
from sharespace.formats.companions import LABELS, FolderFiles, folder_labels, write_files_of
from sharespace.formats.lora_config import (
    CONFIG,
    CONVERT,
    FACTOR,
    METADATA,
    PREFIX,
    LoraScaling,
    changed_base,
    check_rank,
    lora_scaling,
    may_be_target,
    parameter_of,
    refuse_other_updates,
    target_parameters,
    without_wrappers,
)
from sharespace.formats.pairs import (
    AdapterKeys,
    FactorPair,
    build_adapter,
    is_grouped,
    is_stacked,
    refuse_other_keys,
    refuse_single,
)
from sharespace.formats.plain import (
    ExportOptions,
    PlainLora,
    check_updates,
    common_rank,
    flat_factor,
    is_flat_factor,
    split_components,
)
from sharespace.formats.weights_file import (
    SafetensorsFile,
    WeightsFile,
    parse_object,
    refuse_special,
    unreadable,
    write_tensors,
)
from sharespace.subspace.adapter import Adapter, BaseModel, Divisible, LayerUpdate
from sharespace.subspace.naming import unwrapped

PEFT_WEIGHTS = "adapter_model.safetensors"
_MAX_CONFIG = 1 << 26
"""Most bytes of a configuration; one with full paths and patterns of every module has a few MB."""
_NAMED_FACTOR = re.compile(r"\.lora_[AB]\.([^.]+)\.weight$")
_LORA_PART = r"(\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))"
_FACTOR_WORD = re.compile(r"\.lora_(embedding_)?[AB](\.|$)")


def is_peft(file: WeightsFile) -> bool:
    """Whether PEFT wrote a file: its config lies beside it, or its keys are PEFT's."""
    return file.path.with_name(CONFIG).is_file() or has_peft_factors(file)


def has_peft_factors(file: WeightsFile) -> bool:
    """Whether any key is that of a factor in PEFT's words, which diffusers uses as well."""
    return any(_FACTOR_WORD.search(key) for key in file.infos)


def read_peft(file: WeightsFile, *, name: str, source: str) -> Adapter:
    """Read a PEFT adapter; its ``adapter_config.json`` lies beside the weights.

    Args:
        file: the weights.
        name: of the adapter.
        source: what its provenance says.

    Raises:
        CorruptAdapterError: missing or broken config, or tensors that don't fit it or each other.
        UnsupportedAdapterError: something in it can't be kept exactly.
    """
    config_file = file.path.with_name(CONFIG)
    if not config_file.is_file():
        refuse_other_keys(file)
        raise CorruptAdapterError(str(config_file), "missing", "PEFT's weights need it beside them")
    where = str(config_file)
    config = without_wrappers(read_config(config_file))
    initial = _initial_folder(config_file.parent, config)
    if initial is not None:
        config = {**config, "init_lora_weights": True}
    refuse_other_updates(where, config)
    scaling = lora_scaling(where, config)
    keys = _sort_keys(file, _peft_keys(file), config, scaling)
    adapter = build_adapter(
        file,
        keys,
        name=name,
        format="peft",
        base=_base(where, config),
        config=config | header_entries(file),
        source=source,
    )
    for module, rank in adapter.ranks.items():
        check_rank(where, scaling, module, rank)
    folder = config_file.parent
    if initial is not None:
        adapter = _from_start(adapter, initial)
    return replace(adapter, files=FolderFiles(folder), labels=folder_labels(folder, file.metadata))


def _initial_folder(folder: Path, config: Mapping[str, Any]) -> Path | None:
    """Where the factors lie from which the training of an adapter of PiSSA and the like began.

    They are in the adapter's folder or beside it, in one named after the initialisation, as PEFT's
    and LLaMA-Factory's scripts save them. LoftQ quantises the base, which no factors take back.
    """
    kind = changed_base(config)
    if kind is None or kind == "loftq":
        return None
    places = [place / f"{kind}_init" for place in (folder, folder.absolute().parent)]
    return next((p for p in places if (p / PEFT_WEIGHTS).is_file() and p != folder), None)


def _from_start(adapter: Adapter, folder: Path) -> Adapter:
    """The adapter as an update of the base as it is published: B A - B_0 A_0, of twice the rank.

    As PEFT's ``subtract_mutated_init`` computes it (peft 0.21, ``tuners/lora/model.py``).

    Raises:
        AdapterError: the initial adapter cannot be read.
        CorruptAdapterError: it is of other modules or shapes.
        UnsupportedAdapterError: there are magnitudes, which belong to the changed base.
    """
    file = SafetensorsFile.open(folder / PEFT_WEIGHTS)
    config = {**without_wrappers(read_config(folder / CONFIG)), "init_lora_weights": True}
    where = str(folder)
    scaling = lora_scaling(where, config)
    keys = _sort_keys(file, _peft_keys(file), config, scaling)
    start = build_adapter(
        file, keys, name=adapter.name, format="peft", base=adapter.base, config={}, source=where
    )
    if any(".lora_" in key for key in (*adapter.kept, *start.kept)):
        why = "it has factors or magnitudes that belong to a base which its start changed"
        raise UnsupportedAdapterError(f"adapter {adapter.name!r}", why, CONVERT)
    if start.shapes != adapter.shapes:
        why = "it is of other modules or shapes than the adapter that was trained from it"
        raise CorruptAdapterError(where, why, "Take the one that the training began from")
    ranks = {module: 2 * rank for module, rank in adapter.ranks.items()}
    return replace(adapter, ranks=ranks, layer=_Differences(adapter.layer, start.layer))


@dataclass(frozen=True, eq=False)
class _Differences:
    """Reads differences of two adapters' updates."""

    trained: Callable[[str], LayerUpdate]
    start: Callable[[str], LayerUpdate]

    def __call__(self, module: str) -> LayerUpdate:
        trained, start = self.trained(module), self.start(module)
        wide = torch.promote_types(trained.up.dtype, torch.float32)
        ups = trained.scaling * trained.up.to(wide), -start.scaling * start.up.to(wide)
        downs = trained.down.to(wide), start.down.to(wide)
        return LayerUpdate(torch.cat(ups, dim=1), torch.cat(downs), 1.0)

    def part(self, module: str) -> _Differences:
        """This module only; see ``subspace.adapter.Divisible``."""
        sides = (self.trained, self.start)
        return _Differences(*(s.part(module) if isinstance(s, Divisible) else s for s in sides))


def read_config(path: Path) -> dict[str, Any]:
    """The fields of an ``adapter_config.json``.

    Raises:
        CorruptAdapterError: it can't be read, or is no JSON object.
    """
    refuse_special(path)
    try:
        if (size := path.stat().st_size) > _MAX_CONFIG:
            why = f"{size} bytes, more than the {_MAX_CONFIG} of any configuration"
            raise CorruptAdapterError(str(path), why, "Check the path")
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    return parse_object(path, data)


def header_entries(file: WeightsFile) -> dict[str, Any]:
    """The weights file's own header entries, but for what is read of them elsewhere."""
    known = ("format", LABELS)
    extra = {key: value for key, value in file.metadata.items() if key not in known}
    return {METADATA: extra} if extra else {}


def _peft_keys(file: WeightsFile) -> dict[str, str]:
    """Key as PEFT writes it -> key in the file.

    Raises:
        UnsupportedAdapterError: the file holds several adapters.
        CorruptAdapterError: two keys are the same tensor's.
    """
    plain = plain_keys(file)
    keys = {k if k.startswith("base_model.") else PREFIX + k: raw for k, raw in plain.items()}
    if len(keys) < len(plain):
        raise CorruptAdapterError(
            str(file.path), f"tensors with and without {PREFIX!r} are the same", "Drop one"
        )
    return keys


def plain_keys(file: WeightsFile) -> dict[str, str]:
    """Key as the bare model's adapter has it -> key in the file.

    Taken out are the name in ``lora_A.<name>.weight``, and the parts that wrappers put into paths.

    Raises:
        UnsupportedAdapterError: the file holds several adapters.
        CorruptAdapterError: two keys are the same tensor's.
    """
    unwrapped_keys = {key: unwrapped(key) for key in file.infos}
    name = _adapter_name(file.path, unwrapped_keys.values())
    keys: dict[str, str] = {}
    for raw, key in unwrapped_keys.items():
        plain = key if name is None else _without_name(key, name)
        if plain in keys:
            raise CorruptAdapterError(
                str(file.path), f"{keys[plain]!r} and {raw!r} are the same tensor's", "Drop one"
            )
        keys[plain] = raw
    return keys


def _adapter_name(path: Path, keys: Iterable[str]) -> str | None:
    names = {match[1] for key in keys if (match := _NAMED_FACTOR.search(key))}
    if len(names) > 1:
        raise UnsupportedAdapterError(
            str(path),
            f"holds several adapters: {', '.join(sorted(names))}",
            "Save each one with PEFT's save_pretrained, into a folder of its own",
        )
    return names.pop() if names else None


def _without_name(key: str, name: str) -> str:
    return re.sub(rf"{_LORA_PART}\.{re.escape(name)}(?=\.|$)", r"\1", key)


def _sort_keys(
    file: WeightsFile,
    keys: Mapping[str, str],
    config: Mapping[str, Any],
    scaling: LoraScaling,
) -> AdapterKeys:
    """Which keys are factor pairs of a module, and which are kept.

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
    for module, factor in factors.items():
        refuse_single(file, module, factor.values())
        pair = FactorPair(factor["A"], factor["B"], scaling.scaling(module))
        down, up = file.infos[pair.down].shape, file.infos[pair.up].shape
        if is_stacked(down, up) or is_grouped(file, pair):
            continue
        owner = parameter_of(module, parameters)
        # A parameter that is named without its module may be any module's: what target_modules
        # name, with the config's rank, is a module of its own (factors of E experts have E ranks).
        fits = bool(down) and down[0] == scaling.rank(module) and may_be_target(config, module)
        if owner is None or ("." not in owner and fits):
            pairs[module] = pair
    used = {key for pair in pairs.values() for key in (pair.down, pair.up)}
    for key, raw in keys.items():
        if is_flat_factor(key, tuple(file.infos[raw].shape)):
            raise flat_factor(key, str(file.path))
    return AdapterKeys(pairs, {key: raw for key, raw in keys.items() if raw not in used})


def _base(where: str, config: Mapping[str, Any]) -> BaseModel:
    for field in ("base_model_name_or_path", "revision"):
        if not isinstance(config.get(field), (str, type(None))):
            raise CorruptAdapterError(
                where, f"{field} is {config[field]!r}", "It must be a text or null"
            )
    return BaseModel(config.get("base_model_name_or_path") or None, config.get("revision") or None)


def write_peft(path: Path, plain: PlainLora, options: ExportOptions) -> list[Path]:
    """Write a task as folders that ``PeftModel.from_pretrained`` loads.

    Args:
        path: where to; made whole or not at all.
        plain: the task; fields of its config that the export does not set are handed on.
        options: rank, dtype and whether to overwrite.

    Returns:
        The directories that hold an adapter: ``path``, or one below it per component where the
        task came from a pipeline's adapter with several.

    Raises:
        OptionError: nothing to write, the rank is too small, or the directory is in use.
        CorruptAdapterError: a factor is not finite, or what was written reads back otherwise.
    """
    rank = common_rank(plain.updates, options.rank)
    parts = split_components(plain)
    with export_directory(path, overwrite=options.overwrite) as aside:
        for name, part in parts.items():
            folder = aside / name if len(parts) > 1 else aside
            folder.mkdir(exist_ok=True)
            write_folder(folder, part, part.tensors(rank, options.dtype), part.fields(rank))
    return [path / name for name in parts] if len(parts) > 1 else [path]


def write_folder(
    folder: Path, part: PlainLora, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]
) -> None:
    """Write weights, config and the task's files into a folder that is there, and compare.

    Raises:
        CorruptAdapterError: a factor is not finite, or something else came back.
    """
    write_tensors(folder / PEFT_WEIGHTS, tensors, part.header)
    text = json.dumps(fields, indent=2, sort_keys=True, allow_nan=False)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    write_files_of(folder, part.files)
    file = SafetensorsFile.open(folder / PEFT_WEIGHTS)
    adapter = read_peft(file, name="written", source="")
    check_written(file, tensors, adapter, set(part.updates))
    check_updates({module: adapter.layer(module) for module in part.updates}, part.updates)


def check_written(
    file: SafetensorsFile, tensors: Mapping[str, Tensor], adapter: Adapter, modules: set[str]
) -> None:
    """Compare a written file with what was meant: names, shapes, dtypes, modules and scalings.

    Raises:
        CorruptAdapterError: something else came back than was written.
    """
    meant = {key: (tuple(t.shape), t.dtype) for key, t in tensors.items()}
    written = {key: (info.shape, info.dtype) for key, info in file.infos.items()}
    scalings = {adapter.layer(module).scaling for module in adapter.shapes}
    if meant != written or set(adapter.shapes) != modules or scalings != {1.0}:
        raise CorruptAdapterError(
            file.path.name, "reads back otherwise than it was written", "Report this as a bug"
        )
