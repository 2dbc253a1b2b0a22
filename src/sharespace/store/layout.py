"""What a store consists of: names of files, and the values that its JSON files hold.

docs/format.md is the specification; this file and ``schema`` are its Python form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from sharespace.errors import CorruptStoreError
from sharespace.files import STORE_HEAD, STORE_OBJECTS
from sharespace.subspace.adapter import BaseModel, ModuleShape
from sharespace.subspace.layer import Certificate
from sharespace.subspace.state import BuildSettings

FORMAT = "sharespace"
SCHEMA_VERSION = 3
"""The highest that is read. A manifest is written in the lowest that can say it, so that older
releases read it: 3 where it names samples of the base weights, or what a task has of files, labels
and where it started from; 2 where a layer has a subspace for each group of tasks; else 1."""

HEAD = STORE_HEAD
LOCK = "lock"
VERSIONS = "versions"
OBJECTS = STORE_OBJECTS

# Limits of docs/format.md: a file that was damaged or forged must not fill the memory.
MAX_HEAD_BYTES = 1 << 16
MAX_MANIFEST_BYTES = 1 << 28

SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
# A number of 18 digits always fits into 64 bits.
MANIFEST_NAME = re.compile(r"(?P<number>[0-9]{8,18})-(?P<sha256>[0-9a-f]{64})\.json", re.ASCII)
OBJECT_NAME = re.compile(
    r"(?P<role>basis|task|kept|files|base)-(?P<sha256>[0-9a-f]{64})\.safetensors", re.ASCII
)

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
"""Name in the manifest -> dtype of bases and coefficients."""


def corrupt(file: str, why: str) -> CorruptStoreError:
    """The error for a file of a store that is not what was committed."""
    remedy = (
        "`sharespace verify` lists what is damaged; "
        "`sharespace rollback` goes back to a whole version"
    )
    return CorruptStoreError(file, why, remedy)


@dataclass(frozen=True)
class FileRef:
    """A file of the store, by content."""

    file: str
    """Path from the store's directory: ``objects/<role>-<sha256>.safetensors``."""
    sha256: str
    bytes: int

    @property
    def name(self) -> str:
        """File name within its directory."""
        return self.file.rpartition("/")[2]


def object_ref(role: str, sha256: str, size: int) -> FileRef:
    """The reference of a tensor file; ``role`` is that of ``OBJECT_NAME``."""
    return FileRef(f"{OBJECTS}/{role}-{sha256}.safetensors", sha256, size)


@dataclass(frozen=True)
class Operation:
    """The operation that made a version."""

    verb: str
    """``init``, ``merge``, ``remove``, ``rename``, ``union``, ``rollback`` ...; not empty."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks it was about."""
    version: int | None = None
    """``rollback``: the version that was gone back to."""


@dataclass(frozen=True)
class LayerEntry:
    """One adapted module in a manifest."""

    module: str
    shape: ModuleShape
    k: tuple[int, int]
    """(k_left, k_right)."""
    cap: tuple[int, int] | None
    certificate: Certificate | None
    streamed: bool = False
    """``LayerSubspace.streamed``."""
    groups: tuple[tuple[int, int], ...] = ()
    """``LayerSubspace.groups``."""


@dataclass(frozen=True)
class TaskSummary:
    """What is worth knowing about a task without opening its file."""

    format: str
    """``Provenance.format``."""
    source: str
    """``Provenance.source``."""
    adapter_bytes: int
    coefficient_bytes: int
    """Bytes of the coefficients as they are stored."""
    modules: int
    """Number of modules that the task adapts."""
    norm: float
    """``Ledger.total_norm``."""
    bound: float
    """``Ledger.bound``, relative."""
    measured: bool
    """``Ledger.measured``: the bound is the error itself."""


@dataclass(frozen=True)
class TaskEntry:
    """One task in a manifest; its name stands nowhere else."""

    name: str
    coefficients: FileRef
    kept: FileRef | None
    summary: TaskSummary
    files: FileRef | None = None
    """File that holds ``Task.files``; None: the task has none."""
    labels: tuple[str, ...] = ()
    """``Task.labels``."""
    started_from: tuple[tuple[str, float], ...] = ()
    """``Task.started_from``, as pairs."""

    @property
    def refs(self) -> list[FileRef]:
        """All tensor files that it refers to."""
        return [r for r in (self.coefficients, self.kept, self.files) if r is not None]

    @property
    def schema_version(self) -> int:
        """The lowest that can say it."""
        return 3 if self.files or self.labels or self.started_from else 1


@dataclass(frozen=True)
class Content:
    """What a version says about the model; two versions may have the same content."""

    base: BaseModel
    fingerprint: str
    settings: BuildSettings
    dtype: torch.dtype
    layers: tuple[LayerEntry, ...]
    basis: FileRef
    tasks: tuple[TaskEntry, ...]
    base_samples: FileRef | None = None
    """File that holds ``ShareModel.base_samples``; None: the base weights were never at hand."""

    @property
    def schema_version(self) -> int:
        """The lowest that can say it."""
        if self.base_samples or any(task.schema_version == 3 for task in self.tasks):
            return 3
        return 2 if any(layer.groups for layer in self.layers) else 1

    @property
    def basis_bytes(self) -> int:
        """Bytes of the bases' numbers."""
        numbers = sum(
            la.shape.out_features * la.k[0] + la.shape.in_features * la.k[1] for la in self.layers
        )
        return numbers * self.dtype.itemsize

    @property
    def files(self) -> dict[str, FileRef]:
        """Every tensor file of the version, by path, each once."""
        refs = [self.basis, *(ref for task in self.tasks for ref in task.refs)]
        if self.base_samples is not None:
            refs.append(self.base_samples)
        return {ref.file: ref for ref in refs}


@dataclass(frozen=True)
class ManifestRef:
    """A version by number and content."""

    number: int
    sha256: str

    @property
    def name(self) -> str:
        """File name within ``versions/``."""
        return f"{self.number:08d}-{self.sha256}.json"

    @property
    def file(self) -> str:
        """Path from the store's directory."""
        return f"{VERSIONS}/{self.name}"


@dataclass(frozen=True)
class Manifest:
    """The manifest of one committed version."""

    number: int
    parent: ManifestRef | None
    created: str
    """UTC, ISO 8601 with seconds."""
    tool: str
    """What wrote it, for example ``sharespace 0.1.0``."""
    operation: Operation
    content: Content
    contributions: tuple[str, ...] = ()
    """SHA-256 of every contribution that was gathered up to this version, in the order in which
    they came; they stay when their tasks are removed or renamed, so that none comes in twice."""


@dataclass(frozen=True)
class Version:
    """Summary of a committed version; equal only where the bytes of the manifest are."""

    number: int
    sha256: str
    """SHA-256 (hex) of the manifest file."""
    created: str
    operation: Operation
    task_count: int

    @property
    def ref(self) -> ManifestRef:
        return ManifestRef(self.number, self.sha256)
