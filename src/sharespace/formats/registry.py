"""Find an adapter's files, tell its format by the keys inside, and read it.

Whatever names adapters (paths, Hub ids, adapters that are open already), opened.

What a task can be exported to, by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from sharespace.errors import CorruptAdapterError, OptionError
from sharespace.formats.components import KNOWN, LORA_METADATA, UNET_ROOTS
from sharespace.formats.diffusers import read_diffusers, write_diffusers
from sharespace.formats.engines import max_lora_rank, write_sglang, write_vllm
from sharespace.formats.files import (
    COPY_AGAIN,
    SUFFIXES,
    SafetensorsFile,
    WeightsFile,
    parse_object,
    unreadable,
)
from sharespace.formats.gguf import write_gguf
from sharespace.formats.hub import download, parse_hub_id
from sharespace.formats.kohya import is_kohya, read_kohya, write_kohya
from sharespace.formats.lora_config import CONFIG
from sharespace.formats.pairs import refuse_other_keys
from sharespace.formats.peft import read_peft, write_peft
from sharespace.formats.plain import ExportOptions, PlainLora
from sharespace.formats.torch_file import TorchFile
from sharespace.subspace.adapter import Adapter

STEMS = ("adapter_model", "pytorch_lora_weights")

PEFT_FACTOR = re.compile(r"\.lora_(embedding_)?[AB](\.|$)")

OLD_DIFFUSERS = re.compile(r"[._]lora\.(down|up)\.weight$|\.lora_linear_layer\.")

Source: TypeAlias = "str | os.PathLike[str] | Adapter"

Sources: TypeAlias = "Source | Iterable[Source] | Mapping[str, Source]"

Writer: TypeAlias = Callable[[Path, PlainLora, ExportOptions], list[Path]]
"""Writes a task into a new directory; gives back the directories or files to load."""


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


def _rank(written: list[Path]) -> int:
    config = written[0] / CONFIG
    return int(parse_object(config, config.read_bytes())["r"])


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


def read_adapter(source: str | os.PathLike[str], name: str | None = None) -> Adapter:
    """Read an adapter lazily, whatever its format.

    Args:
        source: a directory, a file, or, where there is no such path, a Hub id ``user/repo`` or
            ``user/repo@revision``.
        name: of the adapter; None: ``default_name(source)``.

    Raises:
        CorruptAdapterError: it is missing or broken.
        UnsupportedAdapterError: it has something that can't be kept exactly.
    """
    hub = parse_hub_id(source)
    path = download(hub) if hub else Path(source)
    weights = find_weights(path)
    file = open_weights(weights)
    config = weights.with_name(CONFIG)
    label = str(hub) if hub else f"{weights.absolute().parent.name}/{weights.name}"
    name = default_name(source) if name is None else name
    format = format_of(file, config)
    if format == "peft":
        return read_peft(file, config, name=name, source=label)
    read = read_kohya if format == "kohya" else read_diffusers
    return read(file, name=name, source=label)


def default_name(source: str | os.PathLike[str]) -> str:
    """What an adapter is called where nobody says: a directory's name, a Hub repository's name, a
    file's stem, or its folder's name where the stem is a standard one."""
    if hub := parse_hub_id(source):
        return hub.name
    path = Path(source).absolute()
    if path.suffix not in SUFFIXES or path.is_dir():
        return path.name
    return path.parent.name if path.stem in STEMS else path.stem


def find_weights(path: Path) -> Path:
    """The weights file at a path: the path itself, or the one in a directory.

    In a directory the standard names go before others, and safetensors before PyTorch files, as
    PEFT and diffusers have it.

    Raises:
        CorruptAdapterError: there is none, or there are several.
    """
    try:
        if not path.is_dir():
            path.stat()
            return path
        names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    except (OSError, ValueError) as error:
        raise CorruptAdapterError(str(path), f"cannot be read ({error})", "Check path") from error
    found = [name for name in names if name.endswith(SUFFIXES)]
    standard = [_first(found, stem) for stem in STEMS if _first(found, stem)]
    candidates = standard or found
    if len(candidates) != 1:
        raise _not_one(path, candidates)
    return path / candidates[0]


def format_of(file: WeightsFile, config: Path) -> str:
    """ "peft", "kohya" or "diffusers", by the keys.

    Args:
        file: the weights.
        config: where PEFT's config would lie.

    Raises:
        CorruptAdapterError: no format's keys, or PEFT's without its config.
    """
    keys = file.infos
    if any(is_kohya(key) for key in keys):
        return "kohya"
    prefixed = any(key.startswith("base_model.") for key in keys)
    if not prefixed and any(OLD_DIFFUSERS.search(key) for key in keys):
        return "diffusers"
    if config.is_file():
        return "peft"
    refuse_other_keys(file)
    if not any(PEFT_FACTOR.search(key) for key in keys):
        few = ", ".join(list(keys)[:3]) or "none at all"
        raise CorruptAdapterError(
            str(file.path),
            f"no LoRA tensor of a format that is known (keys: {few})",
            "Check that it is an adapter of PEFT, diffusers or kohya",
        )
    if prefixed or not _is_pipeline(file):
        raise CorruptAdapterError(str(config), "missing", "PEFT's weights need it beside them")
    return "diffusers"


def _is_pipeline(file: WeightsFile) -> bool:
    roots = {key.split(".", 1)[0] for key in file.infos}
    return LORA_METADATA in file.metadata or bool(roots & (KNOWN | UNET_ROOTS))


def open_weights(path: Path) -> WeightsFile:
    """Open a file of tensors by what its first bytes are.

    Raises:
        CorruptAdapterError: neither safetensors nor PyTorch's, or damaged.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(24)
    except OSError as error:
        raise unreadable(path, error) from error
    if head[8:9] == b"{":
        return SafetensorsFile.open(path)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return TorchFile.open(path)
    if head.startswith(b"version https://git-lfs"):
        raise CorruptAdapterError(str(path), "a Git LFS pointer, not weights", "Run git lfs pull")
    raise CorruptAdapterError(str(path), "neither a safetensors nor a PyTorch file", COPY_AGAIN)


def _first(names: list[str], stem: str) -> str:
    return next((stem + suffix for suffix in SUFFIXES if stem + suffix in names), "")


def _not_one(path: Path, names: list[str]) -> CorruptAdapterError:
    if names:
        return CorruptAdapterError(
            str(path), f"several weights files: {', '.join(names)}", "Give the file's path"
        )
    below = sorted(str(p.parent.relative_to(path)) for p in path.glob("*/" + CONFIG))
    remedy = f"There are adapters in: {', '.join(below)}" if below else "Check the path"
    return CorruptAdapterError(str(path), "no weights file in this directory", remedy)


def open_adapters(sources: Sources) -> list[Adapter]:
    """Open whatever was given; adapters that are open already pass through.

    Raises:
        AdapterError: one of them cannot be read.
    """
    if isinstance(sources, str | os.PathLike | Adapter):
        sources = [sources]
    if isinstance(sources, Mapping):
        return [_adapter(source, name) for name, source in sources.items()]
    return [_adapter(source, None) for source in sources]


def _adapter(source: Source, name: str | None) -> Adapter:
    if isinstance(source, Adapter):
        return source if name is None else source.with_name(name)
    return read_adapter(source, default_name(source) if name is None else name)


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
