"""Files of named tensors, read one tensor at a time by their place in the file.

A reader knows every tensor's dtype, shape and place from one pass over the file's header. It keeps
neither the file nor a memory map open: pages of a map that were touched stay resident, and with a
hundred adapters read layer by layer that adds up to all of their bytes.

A safetensors file is 8 bytes N (little-endian), N bytes of JSON header (key -> dtype, shape,
data_offsets; ``__metadata__`` -> strings), then the data that the offsets count from (source:
huggingface/safetensors, README). Weights in several files have an index of which tensor is in
which. PyTorch's checkpoints are read by ``torch_file``.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.files import SAFETENSORS_DTYPES, sha256_of
from sharespace.strict_json import parse_json
from sharespace.words import first_line

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
MAX_KEY = 1_000
"""Characters of a tensor's key; the longest of real adapters have about 150."""
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


@dataclass(frozen=True, eq=False)
class SafetensorsFile:
    """An open-on-demand safetensors file; see ``tensors.WeightsFile``."""

    path: Path
    infos: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    ranges: ByteRanges

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Validate the file and read its header.

        Raises:
            CorruptAdapterError: truncated, wrong magic, broken or oversized header, duplicate keys.
            UnsupportedAdapterError: a dtype that torch does not have.
        """
        # The library checks offsets without holes or overlap, sizes that fit shapes, and a header
        # below 100 MB. It is not kept open: a ``safe_open`` a layer parses the header each time.
        _validate(path)
        try:
            with path.open("rb", buffering=0) as stream:
                stamp = Stamp.of(os.fstat(stream.fileno()))
                size = int.from_bytes(read_exactly(stream, 8), "little")
                header = parse_object(path, bytes(read_exactly(stream, size)))
        except OSError as error:
            raise unreadable(path, error) from error
        metadata = header.pop("__metadata__", None) or {}
        refuse_long_keys(path, header)
        infos = {key: _info(path, key, entry) for key, entry in header.items()}
        starts = {key: 8 + size + entry["data_offsets"][0] for key, entry in header.items()}
        return cls(path, infos, metadata, ByteRanges(path, infos, starts, stamp))

    def read(self, *keys: str) -> tuple[Tensor, ...]:
        """The tensors; see ``tensors.WeightsFile.read``."""
        return self.ranges.read(*keys)

    def part(self, *keys: str) -> SafetensorsFile:
        """The file with these tensors only; see ``tensors.WeightsFile.part``."""
        ranges = self.ranges.part(*keys)
        return SafetensorsFile(ranges.path, ranges.infos, {}, ranges)


def _validate(path: Path) -> None:
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise CorruptAdapterError(
            str(path), f"not a valid safetensors file ({error})", COPY_AGAIN
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except RuntimeError as error:  # torch maps the file, and says so where it cannot.
        why = f"it cannot be opened ({first_line(error)})"
        raise CorruptAdapterError(str(path), why, "Check the file and its disk") from error


def _info(path: Path, key: str, entry: Mapping[str, Any]) -> TensorInfo:
    if entry["dtype"] not in SAFETENSORS_DTYPES:
        raise UnsupportedAdapterError(
            str(path), f"tensor {key!r} has dtype {entry['dtype']}", "Save it as F32, F16 or BF16"
        )
    return TensorInfo(SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"]))


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
        if info.nbytes == 0:  # torch.frombuffer refuses an empty buffer
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
    filled = 0
    while filled < size:
        count = stream.readinto(view[filled:])
        if not count:
            raise OSError(0, f"ends {size - filled} bytes early")
        filled += count
    return data


@dataclass(frozen=True)
class Stamp:
    """Tells whether a path still holds the file whose header was read."""

    size: int
    modified: int
    """Time of the last change in nanoseconds."""
    inode: int
    """Tells a file that was replaced by another of the same size and time."""

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


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: the disk does not take it.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
        # The library writes files that only the owner can read; a server may be another user.
        path.chmod(0o666 & ~_umask())
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def parse_object(where: Path | str, data: bytes | str) -> dict[str, Any]:
    """The JSON object in a text, read strictly (see ``strict_json``).

    Args:
        where: named in errors.
        data: UTF-8 bytes or text.

    Raises:
        CorruptAdapterError: no UTF-8, no JSON, not an object, or a name is written twice.
    """

    def corrupt(why: str) -> CorruptAdapterError:
        return CorruptAdapterError(str(where), why, "Correct it, or download the file again")

    parsed = parse_json(data, corrupt)
    if not isinstance(parsed, dict):
        raise corrupt(f"JSON holds a {type(parsed).__name__}, not an object")
    return parsed


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces.

    Raises:
        CorruptAdapterError: the file cannot be read.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise unreadable(path, error) from error


def refuse_special(path: Path) -> None:
    """Refuse what is no regular file: opening a named pipe waits for its other end for ever.

    Raises:
        CorruptAdapterError: a pipe, device, socket or folder, or the path cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(mode):
        kind = next((what for test, what in _SPECIAL if test(mode)), "a special file")
        raise CorruptAdapterError(str(path), f"{kind}, not a regular file", "Give the file itself")


_SPECIAL = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISDIR, "a folder"),
)


def refuse_long_keys(path: Path, keys: Iterable[object]) -> None:
    """Refuse keys that no module's path is as long as: matching patterns takes the square of it."""
    for key in keys:
        if isinstance(key, str) and len(key) > MAX_KEY:
            why = (
                f"a key of {len(key):,} characters ({key[:40]!r} ...), at most {MAX_KEY:,} are read"
            )
            raise CorruptAdapterError(str(path), why, "Save it with the model's own names")


def unreadable(path: Path, error: OSError | ValueError) -> CorruptAdapterError:
    """The error for a file that the system does not give."""
    reason = getattr(error, "strerror", None) or type(error).__name__
    return CorruptAdapterError(str(path), f"cannot be read ({reason})", "Check path and rights")


INDEX = ".safetensors.index.json"
"""End of an index's name."""


@dataclass(frozen=True, eq=False)
class ShardedFile:
    """The files of an index as one; see ``WeightsFile``."""

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
        """The tensors; see ``WeightsFile.read``."""
        return tuple(self.files[key].read(key)[0] for key in keys)

    def part(self, *keys: str) -> ShardedFile:
        """These tensors only; see ``WeightsFile.part``."""
        return ShardedFile(self.path.absolute(), {key: self.files[key].part(key) for key in keys})
