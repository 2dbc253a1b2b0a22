"""What a store consists of: names of files, and the values that its JSON files hold, as JSON.

docs/format.md is the specification, in schema versions 1 to 3; this file is its Python form. Every
field is checked while it is read: a manifest that gets through here is one that a writer could have
written.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from functools import partial
from typing import cast

import torch

from sharespace.errors import CorruptStoreError, SchemaVersionError
from sharespace.files import STORE_HEAD, STORE_OBJECTS
from sharespace.strict_json import JsonFields, dump_json, parse_json
from sharespace.subspace.adapter import BaseModel, Kind, ModuleShape, fingerprint
from sharespace.subspace.basis_methods import basis_method, method_names
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


_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


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


def head_to_json(current: ManifestRef) -> bytes:
    """The bytes of ``share.json``."""
    return dump_json({**_marks(1), "current": current.file, "sha256": current.sha256})


def head_from_json(data: bytes, file: str) -> ManifestRef:
    """The current version, from the bytes of ``share.json``.

    Raises:
        SchemaVersionError: a newer sharespace wrote it.
        CorruptStoreError: it is broken.
    """
    fields = _checked(data, file)
    current = fields.text("current")
    directory, _, name = current.rpartition("/")
    match = MANIFEST_NAME.fullmatch(name)
    if directory != VERSIONS or not match:
        fields.wrong("current", f"not the path of a version: {current[:80]!r}")
    ref = ManifestRef(int(match["number"]), match["sha256"])
    if fields.text("sha256") != ref.sha256 or ref.number < 1 or ref.file != current:
        fields.wrong("current", f"does not agree with its number or sha256: {current!r}")
    return ref


def manifest_to_json(manifest: Manifest) -> bytes:
    """The bytes of a file in ``versions/``.

    Raises:
        ValueError, TypeError, KeyError: a value has no JSON in this schema.
    """
    parent = manifest.parent
    return dump_json(
        {
            **_marks(manifest.content.schema_version),
            "version": manifest.number,
            "parent": parent and {"version": parent.number, "sha256": parent.sha256},
            "created": manifest.created,
            "tool": manifest.tool,
            "operation": asdict(manifest.operation),
            **_content_to_json(manifest.content),
            **_contributions_to_json(manifest.contributions),
        }
    )


def manifest_from_json(data: bytes, file: str) -> Manifest:
    """A version, from the bytes of a file in ``versions/``.

    Raises:
        SchemaVersionError: a newer sharespace wrote it.
        CorruptStoreError: it is broken.
    """
    fields = _checked(data, file)
    return Manifest(
        number=fields.whole("version", least=1),
        parent=None if fields.is_null("parent") else _parent(fields.child("parent")),
        created=fields.text("created", _TIME),
        tool=fields.text("tool"),
        operation=_operation(fields.child("operation")),
        content=_content(fields),
        contributions=_contributions(fields),
    )


def summary_from_json(data: bytes, ref: ManifestRef) -> Version:
    """What ``history`` shows of a version; the rest of the manifest is not looked at.

    Raises:
        SchemaVersionError: a newer sharespace wrote it.
        CorruptStoreError: it is broken.
    """
    fields = _checked(data, ref.file)
    return Version(
        number=ref.number,
        sha256=ref.sha256,
        created=fields.text("created", _TIME),
        operation=_operation(fields.child("operation")),
        task_count=len(fields.children("tasks")),
    )


def _marks(schema_version: int) -> dict[str, object]:
    return {"format": FORMAT, "schema_version": schema_version}


def _checked(data: bytes, file: str) -> JsonFields:
    make_error = partial(corrupt, file)
    fields = JsonFields(parse_json(data, make_error), make_error)
    fields.one_of("format", FORMAT)
    # Before any other field, of which a newer schema may have changed each.
    version = fields.whole("schema_version", least=1)
    if version > SCHEMA_VERSION:
        why = f"written in schema version {version}; this release reads up to {SCHEMA_VERSION}"
        raise SchemaVersionError(file, why, "Upgrade: pip install -U sharespace")
    return fields


def _parent(fields: JsonFields) -> ManifestRef:
    return ManifestRef(fields.whole("version", least=1), fields.text("sha256", SHA256))


def _operation(fields: JsonFields) -> Operation:
    verb = fields.text("verb")
    if not verb:
        fields.wrong("verb", "must not be empty")
    return Operation(verb, fields.texts("tasks"), fields.whole_or_null("version", least=1))


def _contributions_to_json(ids: tuple[str, ...]) -> dict[str, object]:
    # Left out where there are none: manifests of stores that gather nothing keep the bytes that
    # they had before contributions existed.
    return {"contributions": list(ids)} if ids else {}


def _contributions(fields: JsonFields) -> tuple[str, ...]:
    if not fields.has("contributions"):
        return ()
    ids = fields.texts("contributions")
    if not all(SHA256.fullmatch(text) for text in ids):
        fields.wrong("contributions", "not all of them are a SHA-256")
    if len(set(ids)) != len(ids):
        fields.wrong("contributions", "one stands there twice")
    return ids


def _content_to_json(content: Content) -> dict[str, object]:
    samples = content.base_samples
    return {
        "base_model": {
            **asdict(content.base),
            "fingerprint": content.fingerprint,
            **({"digest": asdict(samples)} if samples else {}),
        },
        "settings": asdict(content.settings),
        "dtype": _DTYPE_NAMES[content.dtype],
        "layers": [_layer_to_json(layer) for layer in content.layers],
        "basis": asdict(content.basis),
        "tasks": [_task_to_json(task) for task in content.tasks],
    }


def _task_to_json(task: TaskEntry) -> dict[str, object]:
    # What a task does not have is left out, as in the schema versions that do not know of it.
    return {
        "name": task.name,
        "coefficients": asdict(task.coefficients),
        "kept": task.kept and asdict(task.kept),
        "summary": asdict(task.summary),
        **({"files": asdict(task.files)} if task.files else {}),
        **({"labels": list(task.labels)} if task.labels else {}),
        **({"started_from": dict(task.started_from)} if task.started_from else {}),
    }


def _content(fields: JsonFields) -> Content:
    base = fields.child("base_model")
    content = Content(
        base=BaseModel(base.text_or_null("id"), base.text_or_null("revision")),
        fingerprint=base.text("fingerprint", SHA256),
        settings=_settings(fields.child("settings")),
        dtype=DTYPES[fields.one_of("dtype", *DTYPES)],
        layers=tuple(_layer(f) for f in fields.children("layers")),
        basis=_file_ref(fields.child("basis"), "basis"),
        tasks=tuple(_task(f) for f in fields.children("tasks")),
        base_samples=_file_ref_or_none(base, "digest", "base"),
    )
    _refuse_duplicates(fields, "layers", [layer.module for layer in content.layers])
    _refuse_duplicates(fields, "tasks", [task.name for task in content.tasks])
    # A forged k would make readers allocate what no file holds.
    if content.basis_bytes > content.basis.bytes:
        fields.wrong("basis", f"{content.basis.bytes} bytes cannot hold the layers' bases")
    if content.fingerprint != fingerprint({la.module: la.shape for la in content.layers}):
        base.wrong("fingerprint", "not that of the layers")
    return content


def _refuse_duplicates(fields: JsonFields, key: str, names: list[str]) -> None:
    if "" in names:
        fields.wrong(key, "a name is empty")
    if len(set(names)) != len(names):
        repeated = next(n for n in names if names.count(n) > 1)
        fields.wrong(key, f"{repeated!r} stands there twice")


def _settings(fields: JsonFields) -> BuildSettings:
    method = fields.one_of("method", *method_names())
    return BuildSettings(
        method=method,
        # Stores were written with ``centred`` of methods where it never had an effect.
        centred=fields.flag("centred") and basis_method(method).can_centre,
        p=fields.whole_or_null("p", least=1),
        cap=fields.whole_or_null("cap", least=1),
        budget=fields.whole_or_null("budget"),
        seed=fields.whole("seed", least=-(2**63)),
    )


def _layer_to_json(layer: LayerEntry) -> dict[str, object]:
    return {
        "module": layer.module,
        **asdict(layer.shape),
        "k_left": layer.k[0],
        "k_right": layer.k[1],
        "cap": layer.cap,
        "certificate": layer.certificate and asdict(layer.certificate),
        **({"streamed": True} if layer.streamed else {}),
        **({"parts": [list(group) for group in layer.groups]} if layer.groups else {}),
    }


def _layer(fields: JsonFields) -> LayerEntry:
    cap = None if fields.is_null("cap") else fields.wholes("cap", count=2)
    shape = _shape(fields)
    k = fields.whole("k_left"), fields.whole("k_right")
    groups = fields.pairs("parts") if fields.has("parts") else ()
    if groups and k != tuple(sum(side) for side in zip(*groups, strict=True)):
        fields.wrong("parts", f"their directions are not {k} in sum")
    for left, right in groups or (k,):
        if left > shape.out_features or right > shape.in_features:
            fields.wrong("k_left", f"more directions {(left, right)} than {shape} can have")
    return LayerEntry(
        module=fields.text("module"),
        shape=shape,
        k=k,
        cap=None if cap is None else (cap[0], cap[1]),
        certificate=None if fields.is_null("certificate") else _certificate(fields),
        streamed=fields.has("streamed") and fields.flag("streamed"),
        groups=groups,
    )


def _shape(fields: JsonFields) -> ModuleShape:
    kernel = fields.wholes("kernel", least=1)
    shape = ModuleShape(
        out_features=fields.whole("out_features", least=1),
        in_features=fields.whole("in_features", least=1),
        kind=cast(Kind, fields.one_of("kind", "linear", "conv")),
        kernel=kernel,
    )
    if (shape.kind == "conv") != bool(kernel) or shape.in_features % math.prod(kernel):
        fields.wrong("kernel", f"does not fit {shape}")
    return shape


def _certificate(fields: JsonFields) -> Certificate:
    inner = fields.child("certificate")
    return Certificate(
        discarded_left=inner.number("discarded_left"),
        discarded_right=inner.number("discarded_right"),
        rank_tail=inner.number("rank_tail"),
    )


def _task(fields: JsonFields) -> TaskEntry:
    return TaskEntry(
        name=fields.text("name"),
        coefficients=_file_ref(fields.child("coefficients"), "task"),
        kept=None if fields.is_null("kept") else _file_ref(fields.child("kept"), "kept"),
        summary=_summary(fields.child("summary")),
        files=_file_ref_or_none(fields, "files", "files"),
        labels=fields.texts("labels") if fields.has("labels") else (),
        started_from=_started_from(fields),
    )


def _started_from(fields: JsonFields) -> tuple[tuple[str, float], ...]:
    if not fields.has("started_from"):
        return ()
    weights = fields.child("started_from")
    return tuple((name, weights.number(name)) for name in fields.mapping("started_from"))


def _summary(fields: JsonFields) -> TaskSummary:
    return TaskSummary(
        format=fields.text("format"),
        source=fields.text("source"),
        adapter_bytes=fields.whole("adapter_bytes"),
        coefficient_bytes=fields.whole("coefficient_bytes"),
        modules=fields.whole("modules"),
        norm=fields.number("norm"),
        bound=fields.number("bound"),
        measured=fields.flag("measured"),
    )


def _file_ref_or_none(fields: JsonFields, key: str, role: str) -> FileRef | None:
    """A reference that is left out where there is no file."""
    return _file_ref(fields.child(key), role) if fields.has(key) else None


def _file_ref(fields: JsonFields, role: str) -> FileRef:
    """Only names that the store makes itself are accepted, so that no path leads out of it."""
    file, sha256 = fields.text("file"), fields.text("sha256", SHA256)
    directory, _, name = file.rpartition("/")
    match = OBJECT_NAME.fullmatch(name)
    if directory != OBJECTS or not match or match["role"] != role or match["sha256"] != sha256:
        fields.wrong("file", f"not {OBJECTS}/{role}-<its sha256>.safetensors: {file[:120]!r}")
    return FileRef(file, sha256, fields.whole("bytes", least=8))
