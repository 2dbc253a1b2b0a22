"""Files of named tensors, read one tensor at a time, and nothing held in between.

A reader knows every tensor's dtype, shape and place from one pass over the file's header. It keeps
neither the file nor a memory map open: pages of a map that were touched stay resident, and with a
hundred adapters read layer by layer that adds up to all of their bytes.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sharespace.errors import CorruptAdapterError

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
COPY_AGAIN = "Download or copy the file again"


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class WeightsFile(Protocol):
    """A file of named tensors; reads on demand."""

    @property
    def path(self) -> Path: ...

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Key -> dtype and shape, in the file's order."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """The header's own entries (safetensors' ``__metadata__``)."""
        ...

    def read(self, *keys: str) -> tuple[Tensor, ...]:
        """The tensors, each in memory of its own.

        Raises:
            CorruptAdapterError: the file is gone, or not the one that was opened.
        """
        ...

    def part(self, *keys: str) -> WeightsFile:
        """The same file with these tensors only, by its absolute path; small to pickle."""
        ...


class KeptTensors(Mapping[str, Tensor]):
    """Tensors that stay in their file until they are asked for, by their key.

    ``names`` maps the key shown to the key in the file; the two differ only where a format's
    reader says so.
    """

    def __init__(self, file: WeightsFile, names: Mapping[str, str]) -> None:
        self._file = file
        self._names = dict(names)

    def __getitem__(self, key: str) -> Tensor:
        return self._file.read(self._names[key])[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def info(self, key: str) -> TensorInfo:
        """Dtype and shape without reading the tensor."""
        return self._file.infos[self._names[key]]


@dataclass(frozen=True)
class Stamp:
    """Tells whether a path still holds the file whose header was read."""

    size: int
    modified: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)

    @classmethod
    def of_path(cls, path: Path) -> Stamp:
        try:
            return cls.of(path.stat())
        except OSError as error:
            raise unreadable(path, error) from error

    def check_path(self, path: Path) -> None:
        """As ``check``, for a path that is not open."""
        if Stamp.of_path(path) != self:
            raise _changed(path)

    def check(self, path: Path, status: os.stat_result) -> None:
        """Raise CorruptAdapterError when the file was changed or replaced."""
        if Stamp.of(status) != self:
            raise _changed(path)


def _changed(path: Path) -> CorruptAdapterError:
    return CorruptAdapterError(
        str(path), "the file was changed after it was opened", "Read the adapter again"
    )


def unreadable(path: Path, error: OSError) -> CorruptAdapterError:
    """The error for a file that the system does not give."""
    reason = error.strerror or type(error).__name__
    return CorruptAdapterError(str(path), f"cannot be read ({reason})", "Check path and rights")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces.

    Raises:
        CorruptAdapterError: the file cannot be read.
    """
    digest = hashlib.sha256()
    piece = memoryview(bytearray(1 << 20))
    try:
        with path.open("rb", buffering=0) as stream:
            while count := stream.readinto(piece):
                digest.update(piece[:count])
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()
