"""Tensors at known places of a file, read with plain reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from sharespace.formats.tensors import Stamp, TensorInfo, unreadable


@dataclass(frozen=True, eq=False)
class ByteRanges:
    """Where a file's tensors lie, little-endian and contiguous."""

    path: Path
    infos: Mapping[str, TensorInfo]
    starts: Mapping[str, int]
    """Key -> offset of its first byte in the file."""
    stamp: Stamp

    def read(self, *keys: str) -> tuple[Tensor, ...]:
        """The tensors, each in memory of its own; the file is opened once and closed again.

        Raises:
            CorruptAdapterError: the file is gone, shorter, or not the one whose header was read.
        """
        try:
            with self.path.open("rb", buffering=0) as stream:
                self.stamp.check(self.path, os.fstat(stream.fileno()))
                return tuple(self._read(stream, key) for key in keys)
        except OSError as error:
            raise unreadable(self.path, error) from error

    def part(self, *keys: str) -> ByteRanges:
        """Of these tensors only, by the file's absolute path."""
        infos = {key: self.infos[key] for key in keys}
        starts = {key: self.starts[key] for key in keys if key in self.starts}
        return ByteRanges(self.path.absolute(), infos, starts, self.stamp)

    def _read(self, stream: FileIO, key: str) -> Tensor:
        info = self.infos[key]
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=info.dtype)
        stream.seek(self.starts[key])
        data = read_exactly(stream, info.nbytes)
        return torch.frombuffer(data, dtype=info.dtype).reshape(info.shape)


def read_exactly(stream: FileIO, size: int) -> bytearray:
    """``size`` bytes; one read may give fewer (the kernel stops at 2 GiB).

    Raises:
        OSError: the file ends before.
    """
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        count = stream.readinto(view[done:])
        if not count:
            raise OSError(0, f"ends {size - done} bytes early")
        done += count
    return data
