"""Serving engines take LoRA factors of linear layers and nothing else: what is refused, and why.

Some of it they refuse themselves, some they leave out without a word; here each is one error
before anything is written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from sharespace.errors import UnsupportedAdapterError
from sharespace.formats.components import COMPONENTS, refuse_unusable
from sharespace.formats.lora_config import CONFIG, FACTOR
from sharespace.formats.peft import read_config, write_folder
from sharespace.formats.plain import PlainLora

ELSEWHERE = "Export it as peft, or serve it with `sharespace serve`"

# A fragment of a kept tensor's key -> what it is.
_KINDS: Mapping[str, str] = {
    ".lora_magnitude_vector": "DoRA magnitudes",
    ".lora_embedding_": "LoRA of embeddings",
    ".token_adapter.": "trained tokens",
    ".lora_B.bias": "biases of factors",
}

# All that an engine needs; other fields may be ones that it refuses or misreads.
_SERVED = (
    *("peft_type", "task_type", "r", "lora_alpha", "target_modules", "fan_in_fan_out"),
    *("base_model_name_or_path", "revision", "inference_mode", "use_rslora"),
)


def refuse_beyond_lora(plain: PlainLora, engine: str) -> None:
    """Refuse a task that is more than LoRA factors of one model's linear layers.

    Args:
        engine: named in errors.

    Raises:
        UnsupportedAdapterError: heads, biases, magnitudes, embeddings, convolutions, or modules
            of a diffusers pipeline.
    """
    if COMPONENTS in plain.config:
        raise UnsupportedAdapterError(
            "task",
            f"it adapts a diffusers pipeline, which {engine} does not serve",
            "Export it as diffusers or kohya",
        )
    if plain.kept:
        kinds = ", ".join(dict.fromkeys(_kind_of(key, plain.kept) for key in plain.kept))
        key = next(iter(plain.kept))
        why = f"carries {kinds} beside its LoRA ({key!r}), which {engine} does not take"
        raise UnsupportedAdapterError("task", why, ELSEWHERE)
    refuse_unusable("task", plain.config)
    for module in plain.updates:
        if module in plain.shapes and plain.shapes[module].kernel:
            why = f"it is a convolution, which {engine} does not take"
            raise UnsupportedAdapterError(module, why, ELSEWHERE)


def _kind_of(key: str, kept: Collection[str]) -> str:
    """What a kept tensor is, in a word or two.

    Args:
        kept: keys of all of them.
    """
    kind = next((kind for fragment, kind in _KINDS.items() if fragment in key), None)
    if kind:
        return kind
    if FACTOR.fullmatch(key):
        return "factors that are kept as they are"
    alone = key.endswith(".bias") and key.removesuffix("bias") + "weight" not in kept
    return "biases" if alone else "heads"


def served_fields(plain: PlainLora, rank: int) -> dict[str, Any]:
    """The fields of an ``adapter_config.json`` that engines read, and none that they stumble over.

    Raises:
        CorruptAdapterError: the original's fields have no usable values.
    """
    fields = plain.fields(rank)
    return {name: fields[name] for name in _SERVED if name in fields} | {"bias": "none"}


def write_served(
    folder: Path, plain: PlainLora, fields: Mapping[str, Any], dtype: torch.dtype | None
) -> None:
    """Write a PEFT folder of factors alone, and read it back.

    Raises:
        CorruptAdapterError: a factor is not finite, or what was written reads back otherwise.
    """
    write_folder(folder, plain, plain.tensors(fields["r"], dtype), fields)


def written_rank(written: list[Path]) -> int:
    """The rank that an exported folder's config states."""
    return int(read_config(written[0] / CONFIG)["r"])
