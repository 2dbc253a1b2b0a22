"""What a task can be exported to, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from sharespace.errors import OptionError
from sharespace.formats.diffusers_export import write_diffusers
from sharespace.formats.export_options import ExportOptions
from sharespace.formats.gguf_export import write_gguf
from sharespace.formats.kohya_export import write_kohya
from sharespace.formats.lora_config import CONFIG
from sharespace.formats.peft_export import write_peft
from sharespace.formats.plain import PlainLora
from sharespace.formats.sglang_export import write_sglang
from sharespace.formats.strict_json import parse_object
from sharespace.formats.vllm_export import max_lora_rank, write_vllm

Writer: TypeAlias = Callable[[Path, PlainLora, ExportOptions], list[Path]]
"""Writes a task into a new directory; gives back the directories or files to load."""


def _of(lora: PlainLora, options: ExportOptions) -> dict[str, Any]:
    """What PEFT's and diffusers' writers are told beside the directory and the updates."""
    return {
        "shapes": lora.shapes,
        "kept": lora.kept,
        "config": lora.config,
        "base": lora.base,
        "rank": options.rank,
        "dtype": options.dtype,
        "overwrite": options.overwrite,
    }


def _peft(directory: Path, lora: PlainLora, options: ExportOptions) -> list[Path]:
    return write_peft(directory, lora.updates, **_of(lora, options))


def _diffusers(directory: Path, lora: PlainLora, options: ExportOptions) -> list[Path]:
    return [write_diffusers(directory, lora.updates, **_of(lora, options))]


TARGETS: Mapping[str, Writer] = {
    "peft": _peft,
    "diffusers": _diffusers,
    "kohya": write_kohya,
    "vllm": write_vllm,
    "sglang": write_sglang,
    "gguf": write_gguf,
}
SERVERS: Mapping[str, Callable[[list[Path]], list[str]]] = {
    "vllm": lambda written: [
        "--enable-lora",
        "--max-lora-rank",
        str(max_lora_rank(_rank(written))),
    ],
    "sglang": lambda written: ["--enable-lora", "--max-lora-rank", str(_rank(written))],
    "gguf": lambda written: ["--lora", str(written[0])],
}
"""What the server of an export has to be started with."""


def write_as(to: str, directory: Path, lora: PlainLora, options: ExportOptions) -> list[Path]:
    """Write a task in the form of that name.

    Raises:
        OptionError: there is no form of that name, or an option has no usable value.
        AdapterError: the task can't be written in that form.
    """
    if to not in TARGETS:
        raise OptionError(f"export to {to!r}", "unknown format", f"Known: {', '.join(TARGETS)}")
    return TARGETS[to](directory, lora, options)


def server_options(to: str, written: list[Path]) -> list[str]:
    """What the server has to be started with to take an export; empty where there is none.

    Args:
        to: the form.
        written: what ``write_as`` gave back.
    """
    return SERVERS[to](written) if to in SERVERS else []


def _rank(written: list[Path]) -> int:
    config = written[0] / CONFIG
    return int(parse_object(config, config.read_bytes())["r"])
