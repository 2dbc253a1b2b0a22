"""Plain LoRA as a ``pytorch_lora_weights.safetensors`` for diffusers' ``load_lora_weights``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sharespace.formats.atomic_dir import new_directory
from sharespace.formats.components import COMPONENTS, LORA_METADATA, component_config
from sharespace.formats.diffusers import read_diffusers
from sharespace.formats.lora_config import PREFIX
from sharespace.formats.peft_export import check_written
from sharespace.formats.plain import PlainLora, common_rank, split_components
from sharespace.formats.safetensors_file import SafetensorsFile, write_tensors
from sharespace.shapes import ModuleShape
from sharespace.subspace.adapter import BaseModel, LayerUpdate

WEIGHTS = "pytorch_lora_weights.safetensors"
FIELDS = frozenset(
    {
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules"),
        *("use_dora", "lora_bias", "bias", "init_lora_weights", "lora_dropout", "fan_in_fan_out"),
        *("modules_to_save", "peft_type", "inference_mode", "base_model_name_or_path", "revision"),
    }
)


def write_diffusers(
    directory: str | os.PathLike[str],
    updates: Mapping[str, LayerUpdate],
    *,
    shapes: Mapping[str, ModuleShape] | None = None,
    kept: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
    base: BaseModel | None = None,
    component: str = "unet",
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a task as plain LoRA in diffusers' form (see ``plain``).

    Keys are ``<component>.<path>.lora_A.weight``. The scaling is in ``lora_B``; one rank with
    r = lora_alpha in the header's ``lora_adapter_metadata`` says so to loaders that read it, and
    those that don't take alpha = rank.

    Args:
        directory: where to; made whole or not at all.
        updates: module -> update, up n x r and down r x d of any rank and scaling.
        shapes: needed where a module is a convolution.
        kept: ``Adapter.kept`` or ``Task.kept``.
        config: ``Adapter.config`` or ``Task.config``.
        base: the base model; None: what ``config`` says.
        component: that the modules belong to, where the task did not come from a pipeline.
        rank: that all factors are padded to; None: the largest.
        dtype: of the factors; None: each as it is.
        overwrite: replace a directory that has something in it.

    Returns:
        The file.

    Raises:
        OptionError: nothing to write, the rank is too small, or the directory is in use.
        CorruptAdapterError: a factor is not finite, or what was written reads back otherwise.
    """
    lora = PlainLora(updates, shapes or {}, kept or {}, config or {}, base)
    size = common_rank(updates, rank)
    parts = split_components(lora)
    named = {name or component: part for name, part in parts.items()}
    target = Path(directory)
    with new_directory(target, overwrite=overwrite) as aside:
        _write(aside / WEIGHTS, lora, named, size, dtype)
    return target / WEIGHTS


def _write(
    path: Path,
    lora: PlainLora,
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
        fields |= {f"{name}.{key}": value for key, value in _fields(name, part, rank).items()}
    header = lora.header | {LORA_METADATA: json.dumps(fields, indent=2, sort_keys=True)}
    write_tensors(path, tensors, header)
    file = SafetensorsFile.open(path)
    adapter = read_diffusers(file, name="written", source="")
    pipeline = COMPONENTS in lora.config
    modules = {m if pipeline else f"{next(iter(parts))}.{m}" for m in lora.updates}
    check_written(file, tensors, adapter, modules)


def _fields(component: str, part: PlainLora, rank: int) -> dict[str, Any]:
    """LoraConfig fields for the header.

    diffusers hands each to ``LoraConfig(**fields)``, where one that is not known is an error: so
    fields of a PEFT adapter go in only where an old PEFT knows them, those of a header again.
    """
    stated = component_config("config", part.config, component)
    fields = {k: v for k, v in part.fields(rank).items() if k in FIELDS or k in stated}
    if component.startswith("text_encoder"):
        # transformers 5 dropped "text_model." from CLIP's paths, and the loader drops it from keys;
        # without it, an entry fits the end of the old path and is the new one.
        modules = (module.removeprefix("text_model.") for module in part.updates)
        fields["target_modules"] = sorted(modules)
    return fields
