"""What lies beside an adapter's weights and belongs to it: tokenizer, chat template, labels.

TRL, Unsloth, LLaMA-Factory and axolotl save the tokenizer into the adapter's folder; where tokens
or a chat template were added, the adapter is of no use without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sharespace.errors import CorruptAdapterError
from sharespace.files import read_bytes
from sharespace.formats.weights_file import unreadable
from sharespace.subspace.adapter import is_companion

MAX_FILE_BYTES = 1 << 28
"""Most bytes of one file; the largest tokenizers take some thirty million."""

LABELS = "sharespace_labels"
"""Entry of an exported weights file's header with the names of the classes, as a JSON list."""

_BELOW = "additional_chat_templates"


class FolderFiles(Mapping[str, Tensor]):
    """The files of a folder that belong to its adapter, as bytes; each is read when asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        below = [f"{_BELOW}/{name}" for name in _names(folder / _BELOW)]
        candidates = [name for name in [*_names(folder), *below] if is_companion(name)]
        # Regular files only: reading a pipe would wait for ever.
        self._files = sorted(name for name in candidates if (folder / name).is_file())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._files:
            raise KeyError(name)
        return _as_tensor(_read(self._folder / name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(folder, error) from error


def _read(path: Path) -> bytes:
    def refused(path: Path, why: str) -> CorruptAdapterError:
        return CorruptAdapterError(str(path), why, "Take it out of the adapter's folder")

    try:
        return read_bytes(path, MAX_FILE_BYTES, partial(refused, path))
    except OSError as error:
        raise unreadable(path, error) from error


def _as_tensor(data: bytes) -> Tensor:
    # torch.frombuffer refuses an empty buffer, and warns of one that cannot be written.
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte()


def write_files_of(folder: Path, files: Mapping[str, Tensor]) -> None:
    """Write a task's files into a folder that is there, bit for bit.

    Raises:
        CorruptAdapterError: a name is none of a file that belongs to an adapter.
    """
    for name in files:
        if not is_companion(name):
            raise CorruptAdapterError(repr(name), "not the name of an adapter's file", "Drop it")
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(files[name].numpy().tobytes())


def folder_labels(folder: Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Names of an adapter's classes: those of an export's header, or of a config.json beside it.

    Args:
        folder: the adapter's.
        metadata: the header of its weights file.
    """
    if LABELS in metadata:
        return _texts(_parsed(metadata[LABELS]))
    path = folder / "config.json"
    config = _parsed(_read(path)) if path.is_file() else None
    return labels_of(config.get("id2label")) if isinstance(config, dict) else ()


def labels_of(id2label: object) -> tuple[str, ...]:
    """Names of the classes in the order of their numbers; empty where nobody named them.

    Args:
        id2label: of a model's configuration, with numbers or their text as keys.
    """
    if not isinstance(id2label, Mapping):
        return ()
    by_number = {str(number): name for number, name in id2label.items()}
    names = _texts([by_number.get(str(i)) for i in range(len(by_number))])
    # What transformers calls classes without a name.
    return () if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names


def _parsed(text: str | bytes) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value


def _texts(values: object) -> tuple[str, ...]:
    """The list as texts; empty where it is none."""
    whole = isinstance(values, list) and all(isinstance(value, str) for value in values)
    return tuple(values) if isinstance(values, list) and whole else ()
