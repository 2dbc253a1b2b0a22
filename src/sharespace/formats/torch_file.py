"""PyTorch checkpoints (``adapter_model.bin``): flat dicts of tensors, never arbitrary pickles.

Only ``torch.load(weights_only=True)`` unpickles. In the zip format the tensors' storages are
uncompressed records: the file is mapped once to learn where each tensor lies, the map is dropped,
and tensors are read by byte range as from safetensors. The format of before PyTorch 1.6 has no
places, so it is unpickled at every read.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.files import SAFETENSORS_DTYPES
from sharespace.formats.weights_file import (
    COPY_AGAIN,
    ByteRanges,
    Stamp,
    TensorInfo,
    refuse_long_keys,
    unreadable,
)

_SAVE_LOADED = "Save it from a model whose weights are loaded"
_FORBIDDEN = re.compile(r"GLOBAL (\S+) was not an allowed")

# What torch.load was seen to raise on damaged files; a bare OSError is told apart before.
DAMAGED = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    SafetensorError,  # newer torch tries other formats where it finds no checkpoint
)


@dataclass(frozen=True, eq=False)
class TorchFile:
    """A checkpoint, read on demand; see ``tensors.WeightsFile``."""

    path: Path
    infos: Mapping[str, TensorInfo]
    ranges: ByteRanges
    """Places of the tensors that lie contiguously in the file."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> TorchFile:
        """Unpickle the file once (weights only) to learn its tensors.

        Raises:
            CorruptAdapterError: damaged, or not a flat dict of tensors.
            UnsupportedAdapterError: it holds tensors that safetensors can't.
        """
        stamp = Stamp.of_path(path)
        if zipfile.is_zipfile(path):
            _check_archive(path)
        tensors = _load(path)
        refuse_long_keys(path, tensors)
        for key, tensor in tensors.items():
            _check(path, key, tensor)
        infos = {k: TensorInfo(t.dtype, tuple(t.shape)) for k, t in tensors.items()}
        starts = _starts(path, tensors) if zipfile.is_zipfile(path) else {}
        return cls(path, infos, ByteRanges(path, infos, starts, stamp))

    def read(self, *keys: str) -> tuple[Tensor, ...]:
        """The tensors; see ``tensors.WeightsFile.read``."""
        if all(key in self.ranges.starts for key in keys):
            return self.ranges.read(*keys)
        self.ranges.stamp.check_path(self.path)
        tensors = _load(self.path)
        return tuple(tensors[key].clone(memory_format=torch.contiguous_format) for key in keys)

    def part(self, *keys: str) -> TorchFile:
        """The file with these tensors only; see ``tensors.WeightsFile.part``."""
        ranges = self.ranges.part(*keys)
        return TorchFile(ranges.path, ranges.infos, ranges)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except OSError as error:
        raise unreadable(path, error) from error
    except DAMAGED as error:
        reason = _reason(error)
        raise CorruptAdapterError(
            str(path),
            f"not a PyTorch file that can be read as weights only ({reason})",
            f"{COPY_AGAIN}; sharespace never unpickles code, so re-save as safetensors",
        ) from error
    if not isinstance(loaded, dict):
        kind = type(loaded).__name__
        raise CorruptAdapterError(str(path), f"holds a {kind}, not a dict of tensors", COPY_AGAIN)
    return loaded


def _reason(error: BaseException) -> str:
    """What torch says, without its advice to unpickle code."""
    text = str(error)
    if "weights_only" in text:
        forbidden = _FORBIDDEN.search(text)
        return f"it would run {forbidden[1]}" if forbidden else "it holds more than tensors"
    return text.splitlines()[0] if text else type(error).__name__


def _check_archive(path: Path) -> None:
    """Look through the archive's list before anything is read.

    Raises:
        CorruptAdapterError: damaged, or entries that are larger than the file, as compressed ones.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            size = path.stat().st_size
    except (OSError, *DAMAGED) as error:
        raise CorruptAdapterError(
            str(path), f"not a PyTorch file that can be read ({_reason(error)})", COPY_AGAIN
        ) from error
    # torch stores entries as they are; a few kilobytes of compressed zeros can be terabytes.
    if sum(entry.file_size for entry in entries) > size:
        raise CorruptAdapterError(
            str(path), "its archive has entries larger than the file", COPY_AGAIN
        )


def _check(path: Path, key: object, tensor: object) -> None:
    if not isinstance(key, str) or not isinstance(tensor, Tensor):
        kind = type(tensor).__name__
        raise CorruptAdapterError(
            str(path), f"entry {key!r} is a {kind}, not a tensor", "Save the adapter's tensors only"
        )
    if tensor.is_meta:
        raise CorruptAdapterError(
            str(path), f"tensor {key!r} has no data (it is on the meta device)", _SAVE_LOADED
        )
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise UnsupportedAdapterError(
            str(path), f"tensor {key!r} is sparse or quantised", "Save it as a dense tensor"
        )
    stored = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > stored:
        # Read whole, an expanded tensor of one number can take any memory there is.
        raise CorruptAdapterError(
            str(path),
            f"tensor {key!r} of shape {list(tensor.shape)} repeats its {stored:,} bytes",
            "Save it with .contiguous()",
        )
    if tensor.dtype not in SAFETENSORS_DTYPES.values():
        raise UnsupportedAdapterError(
            str(path), f"tensor {key!r} has dtype {tensor.dtype}", "Safetensors can't hold it"
        )


def _starts(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Key -> first byte in the file, for contiguous tensors of a mapped file.

    All storages are slices of one map, in the order of the zip's records: the lowest address is
    the lowest record. Every storage must then fall on a record; where one does not, the layout is
    not the one assumed here and no place is given.
    """
    records = _records(path)
    used = {k: t for k, t in tensors.items() if t.numel()}
    addresses = {k: t.untyped_storage().data_ptr() for k, t in used.items()}
    if not records or not addresses:
        return {}
    base = min(addresses.values()) - min(records)
    if not {address - base for address in addresses.values()} <= records:
        return {}
    return {k: t.data_ptr() - base for k, t in used.items() if t.is_contiguous()}


def _records(path: Path) -> set[int]:
    """Offsets of the storages' bytes: behind each local header (30 bytes, name, extra field)."""
    offsets = set()
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        for entry in archive.infolist():
            if "/data/" in entry.filename and entry.file_size:
                stream.seek(entry.header_offset + 26)
                name, extra = struct.unpack("<HH", stream.read(4))
                offsets.add(entry.header_offset + 30 + name + extra)
    return offsets
