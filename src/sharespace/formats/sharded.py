"""Weights in several files, with an index of which tensor is in which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from sharespace.errors import CorruptAdapterError
from sharespace.formats.weights_file import (
    COPY_AGAIN,
    SafetensorsFile,
    TensorInfo,
    parse_object,
    refuse_special,
    unreadable,
)

INDEX = ".safetensors.index.json"
"""End of an index's name."""


@dataclass(frozen=True, eq=False)
class ShardedFile:
    """The files of an index as one; see ``weights_file.WeightsFile``."""

    path: Path
    """Of the index."""
    files: Mapping[str, SafetensorsFile]
    """Key -> the file that it is in."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> ShardedFile:
        """Read an index and the headers of its files.

        Raises:
            CorruptAdapterError: the index is broken, or a file or tensor of it is missing.
        """
        refuse_special(path)
        try:
            places = parse_object(path, path.read_bytes()).get("weight_map")
        except OSError as error:
            raise unreadable(path, error) from error
        if not isinstance(places, dict) or not places:
            raise CorruptAdapterError(str(path), "no weight_map", COPY_AGAIN)
        opened: dict[str, SafetensorsFile] = {}
        for key, name in places.items():
            # A name only: an index of a stranger points to no file elsewhere.
            if not isinstance(name, str) or Path(name).name != name:
                raise CorruptAdapterError(str(path), f"{key!r} is in {name!r}", "Name its files")
            if name not in opened:
                refuse_special(path.with_name(name))
                opened[name] = SafetensorsFile.open(path.with_name(name))
            if key not in opened[name].infos:
                raise CorruptAdapterError(str(path), f"{key!r} is not in {name}", COPY_AGAIN)
        return cls(path, {key: opened[name] for key, name in places.items()})

    @cached_property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Key -> dtype and shape, in the index's order."""
        return {key: file.infos[key] for key, file in self.files.items()}

    def read(self, *keys: str) -> tuple[Tensor, ...]:
        """The tensors; see ``weights_file.WeightsFile.read``."""
        return tuple(self.files[key].read(key)[0] for key in keys)

    def part(self, *keys: str) -> ShardedFile:
        """These tensors only; see ``weights_file.WeightsFile.part``."""
        return ShardedFile(self.path.absolute(), {key: self.files[key].part(key) for key in keys})
