"""Plain LoRA as one file in kohya's form, for web UIs, ComfyUI and kohya's sd-scripts.

Keys are ``lora_unet_<flat path>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha`` (= rank, so
that alpha / rank is 1), ``lora_te_`` for a text encoder, ``lora_te1_`` and ``lora_te2_`` where two
are adapted. Source: kohya-ss/sd-scripts ``networks/lora.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sharespace.errors import UnsupportedAdapterError
from sharespace.formats.atomic_dir import new_directory
from sharespace.formats.components import COMPONENTS, default_component, split_component
from sharespace.formats.export_options import ExportOptions
from sharespace.formats.kohya import read_kohya
from sharespace.formats.kohya_names import flatten, unflatten
from sharespace.formats.peft_export import check_written
from sharespace.formats.plain import PlainLora, common_rank, padded
from sharespace.formats.safetensors_file import SafetensorsFile, write_tensors

ELSEWHERE = "Export it as diffusers"
UNET = "unet"
TEXT = {"text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
BESIDE = ("bundle_emb.",)
"""Start of keys that a kohya file has beside its LoRA (textual inversion)."""
HASHES = "sshs_"
"""Start of header entries that are hashes of the original's weights."""


def write_kohya(directory: Path, lora: PlainLora, options: ExportOptions) -> list[Path]:
    """Write a task in kohya's form.

    Args:
        directory: where to; made whole or not at all. The file in it has its name.
        lora: the task; one that came from no pipeline has to be a UNet's.
        options: rank, dtype and whether to overwrite.

    Returns:
        The file.

    Raises:
        UnsupportedAdapterError: a module or tensor that has no name in this form.
        OptionError: nothing to write, the rank is too small, or the directory is in use.
        CorruptAdapterError: a factor is not finite, or what was written reads back otherwise.
    """
    rank = common_rank(lora.updates, options.rank)
    names = kohya_names(lora)
    tensors = _kept(lora) | _factors(lora, names, rank, options.dtype)
    file = f"{directory.name}.safetensors"
    with new_directory(directory, overwrite=options.overwrite) as aside:
        write_tensors(aside / file, tensors, _header(lora, rank))
        _check(aside / file, tensors, set(names.values()))
    return [directory / file]


def kohya_names(lora: PlainLora) -> dict[str, str]:
    """Module of the task -> module as a reader of the file finds it.

    Raises:
        UnsupportedAdapterError: a component or a path that has no name in this form.
    """
    found: dict[str, str] = {}
    pipeline = COMPONENTS in lora.config
    if not pipeline and default_component(lora.updates) != UNET:
        why = "its modules are no UNet's and no pipeline's, so they have no name in kohya's form"
        raise UnsupportedAdapterError("task", why, "Export it as peft")
    for module in lora.updates:
        component, path = split_component(module) if pipeline else (UNET, module)
        if component in TEXT and path.startswith("encoder."):
            path = f"text_model.{path}"  # transformers 5 has taken this word out
        if component not in (UNET, *TEXT):
            why = f"component {component!r} has no name in kohya's form here"
            raise UnsupportedAdapterError(module, why, ELSEWHERE)
        if unflatten(flatten(path)) != path:
            why = f"kohya's {flatten(path)!r} is read as {unflatten(flatten(path))!r}"
            raise UnsupportedAdapterError(module, why, ELSEWHERE)
        found[module] = f"{component}.{path}"
    return found


def _factors(
    lora: PlainLora, names: Mapping[str, str], rank: int, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    two = any(name.startswith("text_encoder_2.") for name in names.values())
    tensors: dict[str, Tensor] = {}
    for module, update in lora.updates.items():
        component, path = split_component(names[module])
        start = "lora_unet" if component == UNET else TEXT[component]
        start = "lora_te1" if two and start == "lora_te" else start
        key = f"{start}_{flatten(path)}"
        down, up = padded(update, rank, dtype, lora.shapes.get(module))
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up
        tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    return tensors


def _kept(lora: PlainLora) -> dict[str, Tensor]:
    for key in lora.kept:
        if not key.startswith(BESIDE):
            why = "beside the factors, and it has no name in kohya's form"
            raise UnsupportedAdapterError(repr(key), why, ELSEWHERE)
    return {key: tensor.detach().cpu().clone() for key, tensor in lora.kept.items()}


def _header(lora: PlainLora, rank: int) -> dict[str, str]:
    """The original's entries, with the rank that the file has now."""
    entries = {k: v for k, v in lora.header.items() if not k.startswith(HASHES)}
    size = {"ss_network_dim": str(rank), "ss_network_alpha": str(float(rank))}
    return entries | {"ss_network_module": "networks.lora"} | size


def _check(path: Path, tensors: Mapping[str, Tensor], modules: set[str]) -> None:
    file = SafetensorsFile.open(path)
    check_written(file, tensors, read_kohya(file, name="written", source=""), modules)
