"""Every adapter format under its name: how a file of it is told, read and written.

A format is one file of this package and one entry of ``FORMATS``; another package adds its own by
``register_format``. Whatever names adapters (paths, Hub ids, adapters that are open already) is
opened here as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from sharespace.errors import CorruptAdapterError, OptionError
from sharespace.formats.diffusers import (
    DIFFUSERS_WEIGHTS,
    is_diffusers,
    read_diffusers,
    write_diffusers,
)
from sharespace.formats.gguf import gguf_options, write_gguf
from sharespace.formats.hub import download, parse_hub_id
from sharespace.formats.kohya import is_kohya, read_kohya, write_kohya
from sharespace.formats.lora_config import CONFIG
from sharespace.formats.mlx import MLX_WEIGHTS, is_mlx, read_mlx
from sharespace.formats.pairs import refuse_other_keys
from sharespace.formats.peft import PEFT_WEIGHTS, is_peft, read_peft, write_peft
from sharespace.formats.plain import ExportOptions, PlainLora
from sharespace.formats.sglang import sglang_options, write_sglang
from sharespace.formats.torch_file import TorchFile
from sharespace.formats.vllm_target import vllm_options, write_vllm
from sharespace.formats.weights_file import (
    COPY_AGAIN,
    INDEX,
    SUFFIXES,
    SafetensorsFile,
    ShardedFile,
    WeightsFile,
    refuse_special,
    unreadable,
)
from sharespace.subspace.adapter import Adapter

AdapterSource: TypeAlias = "str | os.PathLike[str] | Adapter"
"""A path, a Hub id, or an adapter that is open already."""

AdapterSources: TypeAlias = "AdapterSource | Iterable[AdapterSource] | Mapping[str, AdapterSource]"
"""One adapter, several of them, or name -> adapter."""

ExportWriter: TypeAlias = Callable[[Path, PlainLora, ExportOptions], list[Path]]
"""Writes a task into a new directory; gives back the directories or files to load."""

# Names of weights files that say nothing of the adapter in them.
_STEMS = tuple(Path(name).stem for name in (PEFT_WEIGHTS, DIFFUSERS_WEIGHTS, MLX_WEIGHTS))


class FormatReader(Protocol):
    """Reads an adapter from a file that its format has recognised."""

    def __call__(self, file: WeightsFile, *, name: str, source: str) -> Adapter:
        """The adapter of that name; ``source`` is what its provenance says."""


@dataclass(frozen=True)
class Format:
    """One format of adapters: how its files are recognised, read and written."""

    name: str
    """For the command line and messages, for example ``"peft"``."""
    recognises: Callable[[WeightsFile], bool] | None = None
    """Whether a file of tensors is in this format; None: it is never read."""
    read: FormatReader | None = None
    """Makes the Adapter of a file that ``recognises`` accepted."""
    write: ExportWriter | None = None
    """Writes a task as this format's plain LoRA; None: there is no export to it."""
    server_options: Callable[[list[Path]], list[str]] | None = None
    """What a server has to be started with, from what ``write`` gave back; None: it serves none."""

    def __post_init__(self) -> None:
        if (self.recognises is None) != (self.read is None):
            raise OptionError(
                f"format {self.name!r}",
                "it has one of recognises and read, but not the other",
                "Give both, or neither for a format that is only written",
            )


FORMATS: dict[str, Format] = {}
"""Name -> format. The one that was registered last is asked first whether a file is its own."""


def register_format(format: Format) -> Format:
    """Make a format known to ``read_adapter``, to exports and to the command line.

    Args:
        format: its readers go before those that are known already.

    Raises:
        OptionError: there is a format of that name.
    """
    if format.name in FORMATS:
        raise OptionError(f"format {format.name!r}", "is registered already", "Choose another name")
    FORMATS[format.name] = format
    return format


# PEFT is asked last and kohya first: diffusers writes factors under PEFT's words, and its files
# are told by what they have beside these; nobody but kohya flattens the paths of modules.
register_format(Format("peft", is_peft, read_peft, write_peft))
register_format(Format("diffusers", is_diffusers, read_diffusers, write_diffusers))
register_format(Format("kohya", is_kohya, read_kohya, write_kohya))
register_format(Format("mlx", is_mlx, read_mlx))
register_format(Format("vllm", write=write_vllm, server_options=vllm_options))
register_format(Format("sglang", write=write_sglang, server_options=sglang_options))
register_format(Format("gguf", write=write_gguf, server_options=gguf_options))


def read_adapter(source: str | os.PathLike[str], name: str | None = None) -> Adapter:
    """Read an adapter lazily, whatever its format.

    Args:
        source: a directory, a file, or, where there is no such path, a Hub id ``user/repo`` or
            ``user/repo@revision``.
        name: of the adapter; None: ``default_name(source)``.

    Returns:
        The adapter; its factors are read when they are asked for.

    Raises:
        CorruptAdapterError: it is missing or broken.
        UnsupportedAdapterError: it has something that can't be kept exactly.
    """
    hub = parse_hub_id(source)
    weights = find_weights(download(hub) if hub else Path(source))
    file = open_weights(weights)
    label = str(hub) if hub else f"{weights.absolute().parent.name}/{weights.name}"
    name = default_name(source) if name is None else name
    return _reader_of(file)(file, name=name, source=label)


def _reader_of(file: WeightsFile) -> FormatReader:
    # Last registered first, see FORMATS.
    for format in reversed(FORMATS.values()):
        if format.recognises and format.read and format.recognises(file):
            return format.read
    refuse_other_keys(file)
    few = ", ".join(list(file.infos)[:3]) or "none at all"
    raise CorruptAdapterError(
        str(file.path),
        f"no LoRA tensor of a format that is known (keys: {few})",
        "Check that it is an adapter of PEFT, diffusers, kohya or mlx-lm",
    )


def write_adapter(
    path: str | os.PathLike[str],
    plain: PlainLora,
    options: ExportOptions | None = None,
    *,
    to: str = "peft",
) -> list[Path]:
    """Write a task as plain LoRA in the format of that name.

    Args:
        path: a new directory; made whole or not at all.
        plain: the task: updates, and what is kept beside them.
        options: rank, dtype and so on; None: all defaults.
        to: the format's name.

    Returns:
        The directories or files to load.

    Raises:
        OptionError: there is no format of that name, or an option has no usable value.
        AdapterError: the task can't be written in that format.
    """
    return _writer(to)(Path(path), plain, options or ExportOptions())


def export_names() -> list[str]:
    """Names of the formats that a task can be written in."""
    return [format.name for format in FORMATS.values() if format.write]


def _writer(to: str) -> ExportWriter:
    format = FORMATS.get(to)
    if format is None or format.write is None:
        known = ", ".join(export_names())
        raise OptionError(f"export to {to!r}", "unknown format", f"Known: {known}")
    return format.write


def server_options(to: str, written: list[Path]) -> list[str]:
    """What a server has to be started with to take an export; empty where the format serves none.

    Args:
        to: the format's name.
        written: what ``write_adapter`` gave back.
    """
    options = FORMATS[to].server_options
    return options(written) if options else []


def default_name(source: str | os.PathLike[str]) -> str:
    """What an adapter is called where nobody says.

    A directory's name, a Hub repository's name, a file's stem, or the name of its folder where the
    stem is a standard one.
    """
    if hub := parse_hub_id(source):
        return hub.name
    path = Path(source).absolute()
    if path.suffix not in SUFFIXES or path.is_dir():
        return path.name
    return path.parent.name if path.stem in _STEMS else path.stem


def find_weights(path: Path) -> Path:
    """The weights file at a path: the path itself, or the one in a directory.

    In a directory the standard names go before others, because a training leaves files such as
    ``optimizer.pt`` beside them, and safetensors before PyTorch files, as PEFT and diffusers have
    it.

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
    weights = [name for name in names if name.endswith(SUFFIXES)]
    standard = [first for stem in _STEMS if (first := _first(weights, stem))]
    indices = [name for name in names if name.endswith(INDEX)]
    candidates = standard or indices or weights
    if len(candidates) != 1:
        raise _not_one(path, candidates)
    return path / candidates[0]


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


def open_weights(path: Path) -> WeightsFile:
    """Open a file of tensors by what its first bytes are.

    Raises:
        CorruptAdapterError: neither safetensors nor PyTorch's, or damaged.
    """
    if path.name.endswith(INDEX):
        return ShardedFile.open(path)
    refuse_special(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(24)
    except OSError as error:
        raise unreadable(path, error) from error
    # The bytes decide, not the suffix.
    if head[8:9] == b"{":
        return SafetensorsFile.open(path)
    # A zip archive, or a bare pickle as torch wrote it before 1.6.
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return TorchFile.open(path)
    if head.startswith(b"version https://git-lfs"):
        raise CorruptAdapterError(str(path), "a Git LFS pointer, not weights", "Run git lfs pull")
    raise CorruptAdapterError(str(path), "neither a safetensors nor a PyTorch file", COPY_AGAIN)


def open_adapters(sources: AdapterSources) -> list[Adapter]:
    """Open whatever was given; adapters that are open already pass through.

    Raises:
        AdapterError: one of them cannot be read.
    """
    if isinstance(sources, str | os.PathLike | Adapter):
        sources = [sources]
    if isinstance(sources, Mapping):
        return [_open_adapter(source, name) for name, source in sources.items()]
    return [_open_adapter(source, None) for source in sources]


def _open_adapter(source: AdapterSource, name: str | None) -> Adapter:
    if isinstance(source, Adapter):
        return source if name is None else source.with_name(name)
    return read_adapter(source, name)
