"""Safetensors files by byte ranges.

The format: 8 bytes N (little-endian), N bytes of JSON header (key -> dtype, shape, data_offsets;
``__metadata__`` -> strings), then the data that the offsets count from. The safetensors library
validates the file once (offsets without holes or overlap, sizes that fit shapes, header below
100 MB); the byte ranges are then taken from the header and read with plain reads, because a
``safe_open`` a layer parses the whole header again (source: huggingface/safetensors README).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.formats.byte_ranges import ByteRanges, read_exactly
from sharespace.formats.strict_json import parse_object
from sharespace.formats.tensors import COPY_AGAIN, Stamp, TensorInfo, unreadable

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


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
        _validate(path)
        try:
            with path.open("rb", buffering=0) as stream:
                stamp = Stamp.of(os.fstat(stream.fileno()))
                size = int.from_bytes(read_exactly(stream, 8), "little")
                header = parse_object(path, bytes(read_exactly(stream, size)))
        except OSError as error:
            raise unreadable(path, error) from error
        metadata = header.pop("__metadata__", None) or {}
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


def _umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


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


def _info(path: Path, key: str, entry: Mapping[str, Any]) -> TensorInfo:
    if entry["dtype"] not in DTYPES:
        raise UnsupportedAdapterError(
            str(path), f"tensor {key!r} has dtype {entry['dtype']}", "Save it as F32, F16 or BF16"
        )
    return TensorInfo(DTYPES[entry["dtype"]], tuple(entry["shape"]))
