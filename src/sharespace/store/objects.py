"""Tensor files, named by their content: a deterministic writer and a checked reader.

The writer is our own because a file's name is the hash of its bytes: the same tensors must give
the same bytes in every release of every library. The reader is the safetensors library's.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sharespace.errors import CorruptStoreError, StoreError
from sharespace.files import SAFETENSORS_DTYPES, FileBlocks, disk_errors, sha256_of, write_files
from sharespace.store.schema import OBJECTS, FileRef, corrupt, object_ref
from sharespace.words import first_line

METADATA_KEY = "sharespace"
"""The one key of a file's ``__metadata__``; its value is JSON."""

# Not C64, which the oldest safetensors that is supported cannot read.
_DTYPES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items() if not dtype.is_complex}
_READ_BLOCK = 1 << 20


class Payload(Protocol):
    """Something that can be written as one object."""

    @property
    def ref(self) -> FileRef: ...

    def blocks(self) -> FileBlocks:
        """The file's bytes, in order."""


def tensor_file(role: str, tensors: Mapping[str, Tensor], metadata: str | None) -> TensorFile:
    """Plan a file: header and order of the data; widest dtype first, then by name.

    In this order every tensor lies at a multiple of its element's size, as readers that map a file
    want it.

    Args:
        role: of the object, for its name.
        tensors: any dense tensors of the dtypes that safetensors has.
        metadata: JSON text for the one key of ``__metadata__``; None: no metadata.

    Raises:
        StoreError: a name or a dtype has no place in a safetensors file.
    """
    described = {name: _describe(role, name, tensors[name]) for name in tensors}
    order = sorted(described, key=lambda name: (-described[name][0].itemsize, name))
    header: dict[str, object] = {}
    if metadata is not None:
        header["__metadata__"] = {METADATA_KEY: metadata}
    end = 0
    for name in order:
        dtype, shape = described[name]
        begin, end = end, end + shape.numel() * dtype.itemsize
        header[name] = {
            "dtype": _DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    return TensorFile(role, tensors, tuple(order), _header_bytes(header))


def _describe(role: str, name: str, tensor: Tensor) -> tuple[torch.dtype, torch.Size]:
    what = f"{role} tensor {name!r}"
    if tensor.dtype not in _DTYPES or tensor.layout is not torch.strided or tensor.is_meta:
        why = f"{tensor.dtype}, {tensor.layout} on {tensor.device} cannot be stored"
        raise StoreError(what, why, "Convert it to a dense tensor of an ordinary dtype")
    if name == "__metadata__" or any("\ud800" <= c <= "\udfff" for c in name):
        raise StoreError(what, "a safetensors file cannot have such a key", "Rename it")
    return tensor.dtype, tensor.shape


def _header_bytes(header: Mapping[str, object]) -> bytes:
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    # Spaces, so that the data starts at a multiple of 8 and tensors can be mapped where they lie.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True, eq=False)
class TensorFile:
    """Tensors on their way to a file; read one at a time, so a lazy mapping stays lazy."""

    role: str
    tensors: Mapping[str, Tensor]
    order: tuple[str, ...]
    header: bytes

    def blocks(self) -> Iterator[bytes | memoryview]:
        yield self.header
        for name in self.order:
            yield tensor_bytes_of(self.tensors[name])

    @cached_property
    def ref(self) -> FileRef:
        digest, size = hashlib.sha256(), 0
        for block in self.blocks():
            digest.update(block)
            size += len(block)
        return object_ref(self.role, digest.hexdigest(), size)


def tensor_bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's values in row-major order, little-endian."""
    # Seen as bytes, because NumPy has no bfloat16.
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


@dataclass(frozen=True, eq=False)
class StoredFile:
    """An object that a store has already; copied byte by byte where another store needs it."""

    root: Path
    ref: FileRef

    def blocks(self) -> Iterator[bytes]:
        check_file(self.root, self.ref, hashed=False)
        with (self.root / self.ref.file).open("rb") as file:
            while block := file.read(_READ_BLOCK):
                yield block


def write_objects(root: Path, payloads: Mapping[str, Payload]) -> None:
    """Write the objects (by path) that the store does not have whole, and make all durable.

    Raises:
        StoreError: the tensors of one changed while it was written.
        CorruptStoreError: one is to be copied from a store where it is missing.
    """
    missing = (p for p in payloads.values() if not _is_whole(root, p))
    write_files(root / OBJECTS, ((p.ref.name, _same(p)) for p in missing))


def _is_whole(root: Path, payload: Payload) -> bool:
    """Whether the store has the object already.

    Its bytes are hashed where the payload brings them anew, so that a commit repairs a damaged
    object. Where the payload is the object itself there is nothing to repair it with.
    """
    from_this_store = isinstance(payload, StoredFile) and payload.root == root
    try:
        check_file(root, payload.ref, hashed=not from_this_store)
    except CorruptStoreError:
        return False
    return True


def _same(payload: Payload) -> FileBlocks:
    """The payload's blocks; refuses at the end where they are not those that gave the name."""
    digest = hashlib.sha256()
    for block in payload.blocks():
        digest.update(block)
        yield block
    if digest.hexdigest() != payload.ref.sha256:
        why = "its bytes are not the ones that were hashed: damaged, or changed meanwhile"
        raise StoreError(payload.ref.file, why, "Check the disk it is read from; nothing was lost")


def check_file(root: Path, ref: FileRef, *, hashed: bool) -> Path:
    """The path of an object that has the size, and on demand the hash, of its reference.

    Raises:
        CorruptStoreError: it is missing, has another size, or other bytes.
        StoreError: the operating system refused to read it.
    """
    path = root / ref.file
    with disk_errors(path, "reading"):
        try:
            info = path.stat()
        except FileNotFoundError:
            raise corrupt(str(path), "missing; was its version pruned?") from None
        if not stat.S_ISREG(info.st_mode):
            raise corrupt(str(path), "not a regular file")
        # The size first: it costs no read, and finds what was cut short.
        if info.st_size != ref.bytes:
            raise corrupt(str(path), f"{info.st_size} bytes instead of {ref.bytes}")
        if hashed and sha256_of(path) != ref.sha256:
            raise corrupt(str(path), "its bytes are not those that were committed (sha256)")
    return path


class OpenedFile:
    """A tensor file that was checked; tensors are mapped, their pages read on first use.

    Raises:
        CorruptStoreError: the file is not what was committed, or not a safetensors file.
    """

    def __init__(self, root: Path, ref: FileRef, *, hashed: bool) -> None:
        self.path = check_file(root, ref, hashed=hashed)
        try:
            # A context manager in name only: it holds a mapping, which the tensors share.
            self._file: _SafeOpen = safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise corrupt(str(self.path), f"not a safetensors file: {error}") from error
        except RuntimeError as error:  # torch maps the file, and says so where it cannot.
            raise corrupt(str(self.path), f"it cannot be opened ({first_line(error)})") from error

    @property
    def names(self) -> list[str]:
        return list(self._file.keys())

    @property
    def metadata(self) -> bytes:
        """JSON text of the metadata; empty where there is none."""
        text = (self._file.metadata() or {}).get(METADATA_KEY, "")
        return text.encode("utf-8")

    def tensor(self, name: str) -> Tensor:
        try:
            return self._file.get_tensor(name)
        except (SafetensorError, RuntimeError) as error:
            raise corrupt(str(self.path), f"tensor {name!r}: {first_line(error)}") from error

    def matrix(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor that must have two dimensions and this dtype."""
        tensor = self.tensor(name)
        if tensor.dtype != dtype or tensor.ndim != 2:
            described = f"{tensor.dtype} {list(tensor.shape)}"
            raise corrupt(
                str(self.path), f"tensor {name!r}: {described} instead of a {dtype} matrix"
            )
        return tensor


class _SafeOpen(Protocol):
    """What is used of ``safetensors.safe_open``."""

    def keys(self) -> Iterable[str]: ...

    def metadata(self) -> Mapping[str, str] | None: ...

    def get_tensor(self, name: str) -> Tensor: ...
