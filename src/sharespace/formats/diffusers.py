"""LoRA files of diffusers: ``pytorch_lora_weights.safetensors``.

Keys, by age: ``...attn1.processor.to_q_lora.down.weight`` (module ``...attn1.to_q``;
``to_out_lora`` is ``to_out.0``), ``unet....to_k.lora.down.weight`` (text encoders:
``.lora_linear_layer.``) and PEFT's ``unet....to_k.lora_A.weight``; ``.alpha`` beside each (source:
diffusers 0.42, ``utils/state_dict_utils.py``, ``loaders/lora_base.py``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.files import export_directory
from sharespace.formats.companions import write_files_of
from sharespace.formats.lora_config import (
    COMPONENTS,
    CONFIG,
    LORA_METADATA,
    PREFIX,
    UNET_ROOTS,
    LoraScaling,
    check_rank,
    component_config,
    components_of,
    default_component,
    lora_scaling,
    refuse_other_updates,
    split_component,
    with_component,
)
from sharespace.formats.pairs import AdapterKeys, alpha_scaling, build_adapter, sort_by_role
from sharespace.formats.peft import (
    check_written,
    has_peft_factors,
    header_entries,
    plain_keys,
)
from sharespace.formats.plain import (
    ExportOptions,
    PlainLora,
    check_updates,
    common_rank,
    split_components,
)
from sharespace.formats.weights_file import SafetensorsFile, WeightsFile, write_tensors
from sharespace.subspace.adapter import Adapter, BaseModel
from sharespace.subspace.naming import PIPELINE_WORDS

DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
_OLD_KEY = re.compile(r"[._]lora\.(down|up)\.weight$|\.lora_linear_layer\.")
_ROLES: Mapping[str, str] = {
    ".lora.down.weight": "A",
    ".lora.up.weight": "B",
    ".lora.alpha": "alpha",
    ".lora_linear_layer.down.weight": "A",
    ".lora_linear_layer.up.weight": "B",
    ".lora_linear_layer.alpha": "alpha",
    "_lora.down.weight": "A",
    "_lora.up.weight": "B",
    "_lora.alpha": "alpha",
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".alpha": "alpha",
}

# Old keys of text encoders used the UNet's words for their attention.
_TEXT_ENCODER_WORDS = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out": "out_proj",
}
_FIELDS = frozenset(
    {
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules"),
        *("use_dora", "lora_bias", "bias", "init_lora_weights", "lora_dropout", "fan_in_fan_out"),
        *("modules_to_save", "peft_type", "inference_mode", "base_model_name_or_path", "revision"),
    }
)


def is_diffusers(file: WeightsFile) -> bool:
    """Whether diffusers wrote a file.

    Its newer keys are PEFT's: then the file is a pipeline's where no config of PEFT lies beside it,
    and the header or the paths of the modules say so.
    """
    if any(key.startswith("base_model.") for key in file.infos):
        return False
    if any(_OLD_KEY.search(key) for key in file.infos):
        return True
    if file.path.with_name(CONFIG).is_file() or not has_peft_factors(file):
        return False
    roots = {key.split(".", 1)[0] for key in file.infos}
    return LORA_METADATA in file.metadata or bool(roots & (PIPELINE_WORDS | UNET_ROOTS))


def read_diffusers(file: WeightsFile, *, name: str, source: str) -> Adapter:
    """Read a diffusers adapter.

    Args:
        file: the weights.
        name: of the adapter.
        source: what its provenance says.

    Raises:
        CorruptAdapterError: tensors that don't fit each other, the alphas or the header.
        UnsupportedAdapterError: something in it can't be kept exactly.
    """
    where = str(file.path)
    keys = plain_keys(file)
    default = default_component(keys)
    config = header_entries(file)
    scalings = _HeaderScalings(where, config, default)
    sorted_keys = sort_by_role(file, keys, lambda key: _parse_key(key, default), scalings)
    _refuse_scaled_bias(file, sorted_keys, scalings)
    components = components_of(sorted_keys.pairs)
    return build_adapter(
        file,
        sorted_keys,
        name=name,
        format="diffusers",
        base=BaseModel(_base(where, config, components)),
        config=config | {COMPONENTS: components},
        source=source,
    )


def _parse_key(key: str, default: str) -> tuple[str, str] | None:
    """(module, role) of a factor's or alpha's key; None for others.

    Args:
        key: without an adapter's name.
        default: component of a key that names none.
    """
    for suffix, role in _ROLES.items():
        if key.endswith(suffix) and len(key) > len(suffix):
            path = with_component(key.removesuffix(suffix), default)
            return _module_of(path.replace(".processor.", ".")), role
    return None


def _module_of(path: str) -> str:
    parent, _, word = path.rpartition(".")
    if path.startswith("text_encoder"):
        return f"{parent}.{_TEXT_ENCODER_WORDS.get(word, word)}"
    # A list in the model (linear, dropout): old keys name the list, the update is its first entry.
    return path + ".0" if word == "to_out" else path


class _HeaderScalings:
    """Scaling by module: from the header's LoraConfig of its component, or from its alpha."""

    def __init__(self, where: str, config: Mapping[str, Any], default: str) -> None:
        self.default = default
        self._where = where
        self._config = config
        self._known: dict[str, LoraScaling | None] = {}

    def __call__(self, module: str, rank: int, alpha: float | None) -> float:
        stated, path = self.stated(module), split_component(module)[1]
        if stated is None:
            return alpha_scaling(rank, alpha)
        check_rank(self._where, stated, path, rank)
        scaling = stated.scaling(path)
        if alpha is not None and not math.isclose(scaling, alpha_scaling(rank, alpha)):
            raise CorruptAdapterError(
                self._where,
                f"scaling of {module!r} is {scaling:g} by the header, {alpha}/{rank} by its alpha",
                "Drop the header's lora_adapter_metadata, or the alphas",
            )
        return scaling

    def stated(self, module: str) -> LoraScaling | None:
        """What the header says of the module's component; None where it says nothing."""
        component = split_component(with_component(module, self.default))[0]
        if component not in self._known:
            self._known[component] = self._read(component)
        return self._known[component]

    def _read(self, component: str) -> LoraScaling | None:
        fields = component_config(self._where, self._config, component)
        if not fields:
            return None
        refuse_other_updates(self._where, {"peft_type": "LORA"} | fields)
        return lora_scaling(self._where, fields)


def _refuse_scaled_bias(file: WeightsFile, keys: AdapterKeys, scalings: _HeaderScalings) -> None:
    """A factor's bias is kept as it is, so its scaling has to be one that the header states."""
    for key in keys.kept:
        module = key.removesuffix(".lora_B.bias")
        pair = keys.pairs.get(with_component(module, scalings.default))
        if key != module and pair and pair.scaling != 1 and not scalings.stated(module):
            raise UnsupportedAdapterError(
                str(file.path), f"{key!r} is scaled by an alpha", "Save it with its LoraConfig"
            )


def _base(where: str, config: Mapping[str, Any], components: list[str]) -> str | None:
    """The base that the header states for the first component that has one."""
    stated = (component_config(where, config, c) for c in components)
    names = (fields.get("base_model_name_or_path") for fields in stated)
    return next((name for name in names if isinstance(name, str) and name), None)


def write_diffusers(path: Path, plain: PlainLora, options: ExportOptions) -> list[Path]:
    """Write a task as a file for diffusers' ``load_lora_weights``.

    Keys are ``<component>.<path>.lora_A.weight``. The scaling is in ``lora_B``; one rank with
    r = lora_alpha in the header's ``lora_adapter_metadata`` says so to loaders that read it, and
    those that don't take alpha = rank.

    Args:
        path: the directory; made whole or not at all.
        plain: the task.
        options: rank, dtype, whether to overwrite, and the component of a task that came from no
            pipeline.

    Returns:
        The file.

    Raises:
        OptionError: nothing to write, the rank is too small, or the directory is in use.
        CorruptAdapterError: a factor is not finite, or what was written reads back otherwise.
    """
    rank = common_rank(plain.updates, options.rank)
    parts = {name or options.component: part for name, part in split_components(plain).items()}
    with export_directory(path, overwrite=options.overwrite) as aside:
        _write(aside / DIFFUSERS_WEIGHTS, plain, parts, rank, options.dtype)
        write_files_of(aside, plain.files)
    return [path / DIFFUSERS_WEIGHTS]


def _write(
    path: Path,
    plain: PlainLora,
    parts: Mapping[str, PlainLora],
    rank: int,
    dtype: torch.dtype | None,
) -> None:
    tensors: dict[str, Tensor] = {}
    fields: dict[str, Any] = {}
    for name, part in parts.items():
        for key, tensor in part.tensors(rank, dtype).items():
            own = key.startswith(PREFIX)
            tensors[f"{name}.{key.removeprefix(PREFIX)}" if own else key] = tensor
        fields |= {
            f"{name}.{key}": value for key, value in _header_fields(name, part, rank).items()
        }
    header = plain.header | {LORA_METADATA: json.dumps(fields, indent=2, sort_keys=True)}
    write_tensors(path, tensors, header)
    file = SafetensorsFile.open(path)
    adapter = read_diffusers(file, name="written", source="")
    pipeline = COMPONENTS in plain.config
    modules = {m if pipeline else f"{next(iter(parts))}.{m}": u for m, u in plain.updates.items()}
    check_written(file, tensors, adapter, set(modules))
    check_updates({module: adapter.layer(module) for module in modules}, modules)


def _header_fields(component: str, part: PlainLora, rank: int) -> dict[str, Any]:
    """LoraConfig fields for the header.

    diffusers hands each to ``LoraConfig(**fields)``, where one that is not known is an error: so
    fields of a PEFT adapter go in only where an old PEFT knows them, those of a header again.
    """
    stated = component_config("config", part.config, component)
    fields = {k: v for k, v in part.fields(rank).items() if k in _FIELDS or k in stated}
    if component.startswith("text_encoder"):
        # transformers 5 dropped "text_model." from CLIP's paths, and the loader drops it from keys;
        # without it, an entry fits the end of the old path and is the new one.
        modules = (module.removeprefix("text_model.") for module in part.updates)
        fields["target_modules"] = sorted(modules)
    return fields
