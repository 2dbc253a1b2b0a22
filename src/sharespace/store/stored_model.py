"""A Share model's bases and tasks as tensor files, and back: mappings that read when asked.

A model of thousands of tasks is opened without reading one of them; and what was not replaced since
is committed again as the files that it came from, unread.

A merge that enlarges the basis adds zero rows to the coefficients of every old task. They are not
written, and put back on reading, so that such a merge changes no old task's file. Nor are the rows
before the subspace of a task's group written: the offset of that subspace is written instead (key
``begin``, docs/format.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sharespace.errors import MismatchError, StoreError
from sharespace.store.objects import OpenedFile, StoredFile, TensorFile, check_file, tensor_file
from sharespace.store.schema import Content, FileRef, LayerEntry, TaskEntry, TaskSummary, corrupt
from sharespace.strict_json import JsonFields, parse_json
from sharespace.subspace.adapter import Provenance, is_companion
from sharespace.subspace.base_weights import sample_shape
from sharespace.subspace.coefficients import KINDS, Coefficients
from sharespace.subspace.layer import LayerSubspace, group_size
from sharespace.subspace.state import Ledger, ShareModel, Task

LEFT_BASIS = "left_basis"
RIGHT_BASIS = "right_basis"
SAMPLE_SUFFIX = ".rows"
_NORMS = "ledger.norms"
_TRUNCATIONS = "ledger.truncations"

_KEYS = tuple(key for kind in KINDS for key in kind.keys)
"""Last components of the keys in a task's file."""


def lazy_model(root: Path, content: Content, *, verify: bool) -> ShareModel:
    """The model of a version; reads no tensor file yet."""
    return ShareModel(
        base=content.base,
        settings=content.settings,
        dtype=content.dtype,
        layers=StoredLayers(root, content, verify=verify),
        tasks=StoredTasks(root, content, verify=verify),
        base_samples=_stored(StoredSamples, root, content.base_samples, verify=verify),
    )


def _stored(
    kind: type[StoredTensors], root: Path, ref: FileRef | None, *, verify: bool
) -> Mapping[str, Tensor]:
    return {} if ref is None else kind(root, ref, verify=verify)


class StoredLayers(Mapping[str, LayerSubspace]):
    """The subspaces; the basis file is opened at the first access and its pages read on use."""

    def __init__(self, root: Path, content: Content, *, verify: bool) -> None:
        self.stored = StoredFile(root, content.basis)
        self.entries = {entry.module: entry for entry in content.layers}
        self.dtype = content.dtype
        self._verify = verify
        self._opened: OpenedFile | None = None
        self._cache: dict[str, LayerSubspace] = {}

    def _open(self) -> OpenedFile:
        if self._opened is None:
            opened = OpenedFile(self.stored.root, self.stored.ref, hashed=self._verify)
            check_basis_names(opened, self.entries)
            self._opened = opened
        return self._opened

    def __getitem__(self, module: str) -> LayerSubspace:
        if module not in self._cache:
            self._cache[module] = read_layer(self._open(), self.entries[module], self.dtype)
        return self._cache[module]

    def __contains__(self, module: object) -> bool:
        return module in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def basis_names(module: str) -> tuple[str, str]:
    """Keys of a module's bases in the basis file."""
    return f"{module}.{LEFT_BASIS}", f"{module}.{RIGHT_BASIS}"


def check_basis_names(opened: OpenedFile, layers: Iterable[str]) -> None:
    """Refuse a basis file that has not exactly the tensors of these modules.

    Raises:
        CorruptStoreError: it has others, or lacks some.
    """
    wanted = {name for module in layers for name in basis_names(module)}
    differing = wanted.symmetric_difference(opened.names)
    if differing:
        raise corrupt(str(opened.path), f"missing or unknown tensors: {sorted(differing)[:5]}")


def read_layer(opened: OpenedFile, entry: LayerEntry, dtype: torch.dtype) -> LayerSubspace:
    """One module's subspace from the basis file.

    Raises:
        CorruptStoreError: shapes or dtypes are not those of the manifest.
    """
    left, right = (opened.matrix(name, dtype) for name in basis_names(entry.module))
    wanted = [(entry.shape.out_features, entry.k[0]), (entry.shape.in_features, entry.k[1])]
    shapes = [tuple(left.shape), tuple(right.shape)]
    if shapes != wanted:
        raise corrupt(str(opened.path), f"module {entry.module!r}: {shapes} instead of {wanted}")
    return LayerSubspace(
        entry.shape, left, right, entry.cap, entry.certificate, entry.streamed, entry.groups
    )


class StoredTasks(Mapping[str, Task]):
    """The tasks; each task's file is read and checked at the first access."""

    def __init__(self, root: Path, content: Content, *, verify: bool) -> None:
        self.root = root
        self.entries = {entry.name: entry for entry in content.tasks}
        self.layers = {entry.module: entry for entry in content.layers}
        self.dtype = content.dtype
        self._basis = content.basis
        self._verify = verify
        self._cache: dict[str, Task] = {}

    def __getitem__(self, name: str) -> Task:
        if name not in self._cache:
            self._cache[name] = self._load(self.entries[name])
        return self._cache[name]

    def peek(self, name: str) -> Task:
        """The task, read anew unless it was read before; it is not remembered."""
        return self._cache[name] if name in self._cache else self._load(self.entries[name])

    def _load(self, entry: TaskEntry) -> Task:
        if not self._cache:
            # Reading adds zero rows up to k: with a k of billions in a forged manifest that would
            # fill the memory. A basis file of the size that k needs shows that k is real.
            check_file(self.root, self._basis, hashed=False)
        opened = OpenedFile(self.root, entry.coefficients, hashed=self._verify)
        task = read_task(opened, entry.name, self.layers, self.dtype)
        return replace(
            task,
            kept=_stored(StoredTensors, self.root, entry.kept, verify=self._verify),
            files=_stored(StoredFiles, self.root, entry.files, verify=self._verify),
            labels=entry.labels,
            started_from=dict(entry.started_from),
        )

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class StoredTensors(Mapping[str, Tensor]):
    """What a task keeps: one tensor is read at a time, and none is held here."""

    suffix = ""
    """End of the keys in the file; the names of this mapping are without it."""

    def __init__(self, root: Path, ref: FileRef, *, verify: bool) -> None:
        self.stored = StoredFile(root, ref)
        self._hash_once = verify
        self._names: list[str] | None = None

    def _open(self) -> OpenedFile:
        opened = OpenedFile(self.stored.root, self.stored.ref, hashed=self._hash_once)
        self._hash_once = False
        return opened

    @classmethod
    def check(cls, opened: OpenedFile) -> None:
        """Refuse a file of other tensors than belong there.

        Raises:
            CorruptStoreError: it has such.
        """

    def _known(self) -> list[str]:
        if self._names is None:
            opened = self._open()
            self.check(opened)
            self._names = [n.removesuffix(self.suffix) for n in opened.names]
        return self._names

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._known():
            raise KeyError(name)
        return self._open().tensor(name + self.suffix)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())


class StoredFiles(StoredTensors):
    """The files of a task: names that are safe in a folder, and bytes."""

    @classmethod
    def check(cls, opened: OpenedFile) -> None:
        for name in opened.names:
            tensor = opened.tensor(name)
            if not is_companion(name) or tensor.dtype != torch.uint8 or tensor.ndim != 1:
                why = f"{name!r} is not the bytes of a file that belongs to an adapter"
                raise corrupt(str(opened.path), why)


class StoredSamples(StoredTensors):
    """Samples of the base weights, by module."""

    suffix = SAMPLE_SUFFIX

    @classmethod
    def check(cls, opened: OpenedFile) -> None:
        for name in opened.names:
            sample = opened.matrix(name, torch.float32)
            fits = tuple(sample.shape) == sample_shape(*sample.shape)
            if not name.endswith(cls.suffix) or not fits or not torch.isfinite(sample).all():
                raise corrupt(str(opened.path), f"{name!r} is not a sample of a weight")


def task_file(task: Task, layers: Mapping[str, LayerEntry], dtype: torch.dtype) -> TensorFile:
    """Plan a task's file; its name and what is kept are not in it.

    Raises:
        MismatchError: coefficients do not fit the layers or the dtype.
        StoreError: a value is not finite, or the config is not JSON.
    """
    for module, coefficients in task.coefficients.items():
        _check_fit(task.name, module, coefficients, layers, dtype)
    _check_ledger(task)
    tensors = tensors_of(task)
    refuse_non_finite(f"task {task.name!r}", tensors)
    return tensor_file("task", tensors, _metadata(task))


def tensors_of(task: Task) -> dict[str, Tensor]:
    """The tensors of a task's file: coefficients without trailing zero rows, and the ledger."""
    coefficients = {
        f"{module}.{key}": tensor
        for module, value in task.coefficients.items()
        for key, tensor in value.stored_tensors().items()
    }
    return {**coefficients, _NORMS: task.ledger.norms, _TRUNCATIONS: task.ledger.truncations}


def summarise(task: Task) -> TaskSummary:
    """What a manifest says about a task."""
    return TaskSummary(
        format=task.provenance.format,
        source=task.provenance.source,
        adapter_bytes=task.adapter_bytes,
        coefficient_bytes=sum(c.nbytes for c in task.coefficients.values()),
        modules=len(task.coefficients),
        norm=task.ledger.total_norm,
        bound=task.ledger.bound,
        measured=task.ledger.measured,
    )


def refuse_non_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    """Check values before anything is written.

    Raises:
        StoreError: a tensor has a NaN or an infinity.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            why = f"{name} has values that are not finite"
            raise StoreError(what, why, "Look for a training that diverged, or an overflow in fp16")


def _check_fit(
    task: str,
    module: str,
    coefficients: Coefficients,
    layers: Mapping[str, LayerEntry],
    dtype: torch.dtype,
) -> None:
    if module not in layers:
        raise MismatchError(f"task {task!r}", f"the model has no module {module!r}")
    why = coefficients.misfit(layers[module], dtype)
    if why:
        raise MismatchError(f"task {task!r}, module {module}", why)


def _check_ledger(task: Task) -> None:
    ledger = task.ledger
    shape = (len(ledger.modules), len(ledger.events))
    fits = tuple(ledger.norms.shape) == shape[:1] and tuple(ledger.truncations.shape) == shape
    missing = set(task.coefficients) - set(ledger.modules)
    if not fits or missing or len(set(ledger.modules)) != shape[0]:
        why = f"its ledger has {shape[0]} modules and {shape[1]} events, which do not fit"
        raise MismatchError(f"task {task.name!r}", f"{why} {sorted(missing) or 'its tensors'}")
    if {ledger.norms.dtype, ledger.truncations.dtype} != {torch.float64}:
        raise MismatchError(f"task {task.name!r}", "its ledger is not float64")


def _metadata(task: Task) -> str:
    value = {
        "modules": list(task.coefficients),
        **_offsets_to_json(task),
        "ledger": {"modules": list(task.ledger.modules), "events": list(task.ledger.events)},
        "config": dict(task.config),
        "provenance": asdict(task.provenance),
        "adapter_bytes": task.adapter_bytes,
    }
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
        same = parse_json(text, ValueError) == value
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_json(task.name, str(error)) from error
    if not same:
        raise _not_json(
            task.name, "JSON gives back something else (a tuple, a key that is no text)"
        )
    return text


def _offsets_to_json(task: Task) -> dict[str, object]:
    # Left out where there are none: files of layers with one subspace keep the bytes that they had
    # in schema version 1.
    offsets = {
        module: list(value.offset)
        for module, value in task.coefficients.items()
        if value.offset != (0, 0)
    }
    return {"begin": offsets} if offsets else {}


def _not_json(task: str, why: str) -> StoreError:
    remedy = "Give it text, numbers, true, false, null, lists and objects only"
    return StoreError(f"task {task!r}", f"its config or provenance is not JSON: {why}", remedy)


def read_task(
    opened: OpenedFile,
    name: str,
    layers: Mapping[str, LayerEntry],
    dtype: torch.dtype,
) -> Task:
    """A task from its file, its coefficients padded with zeros to the layers' k.

    What is not in that file (what it keeps, its files and labels) is not in the task either.

    Raises:
        CorruptStoreError: keys, shapes, dtypes or metadata are not those of a task.
    """
    file = str(opened.path)
    make_error = partial(corrupt, file)
    metadata = JsonFields(parse_json(opened.metadata, make_error), make_error, "metadata")
    names = set(opened.names)
    coefficients: dict[str, Coefficients] = {}
    offsets = _read_offsets(metadata)
    for module in metadata.texts("modules"):
        if module not in layers or module in coefficients:
            raise corrupt(file, f"module {module!r} is twice there, or not in the manifest")
        offset = offsets.get(module, (0, 0))
        coefficients[module] = _read_module(opened, names, layers[module], offset, dtype)
    ledger = _read_ledger(opened, metadata.child("ledger"), set(coefficients))
    rest = names - {_NORMS, _TRUNCATIONS}
    if rest:
        raise corrupt(file, f"tensors that belong to no module: {sorted(rest)[:5]}")
    return Task(
        name=name,
        coefficients=coefficients,
        ledger=ledger,
        config=metadata.mapping("config"),
        provenance=_read_provenance(metadata.child("provenance")),
        adapter_bytes=metadata.whole("adapter_bytes"),
    )


def _read_offsets(metadata: JsonFields) -> dict[str, tuple[int, int]]:
    if not metadata.has("begin"):
        return {}
    fields, offsets = metadata.child("begin"), {}
    for module in metadata.mapping("begin"):
        left, right = fields.wholes(module, count=2)
        offsets[module] = left, right
    return offsets


def _read_module(
    opened: OpenedFile,
    names: set[str],
    layer: LayerEntry,
    offset: tuple[int, int],
    dtype: torch.dtype,
) -> Coefficients:
    keys = _take_keys(names, layer.module)
    tensors = {key: opened.matrix(f"{layer.module}.{key}", dtype) for key in keys}
    if any(max(t.shape) > layer.shape.sides for t in tensors.values()):
        # Refused before padding: a matrix without rows may claim any number of columns.
        raise corrupt(str(opened.path), f"module {layer.module!r}: larger than {layer.shape}")
    if group_size(layer, offset) is None:
        why = f"module {layer.module!r}: begins at {offset}, where no subspace begins"
        raise corrupt(str(opened.path), why)
    kind = next((kind for kind in KINDS if kind.keys == keys), None)
    if kind is None:
        raise corrupt(str(opened.path), f"module {layer.module!r} has the tensors {keys}")
    coefficients = kind.from_stored(tensors, layer.k, offset)
    why = coefficients.misfit(layer, dtype)
    if why:
        raise corrupt(str(opened.path), f"module {layer.module!r}: {why}")
    return coefficients


def _take_keys(names: set[str], module: str) -> tuple[str, ...]:
    """The last components of a module's keys, which are taken out of the names."""
    keys = tuple(key for key in _KEYS if f"{module}.{key}" in names)
    names.difference_update(f"{module}.{key}" for key in keys)
    return keys


def _read_ledger(opened: OpenedFile, fields: JsonFields, needed: set[str]) -> Ledger:
    modules, events = fields.texts("modules"), fields.texts("events")
    norms = opened.tensor(_NORMS).clone()
    truncations = opened.matrix(_TRUNCATIONS, torch.float64).clone()
    if norms.dtype != torch.float64 or tuple(norms.shape) != (len(modules),):
        raise corrupt(str(opened.path), f"{_NORMS}: {norms.dtype} {list(norms.shape)}")
    if tuple(truncations.shape) != (len(modules), len(events)):
        raise corrupt(str(opened.path), f"{_TRUNCATIONS}: {list(truncations.shape)}")
    if len(set(modules)) != len(modules) or needed - set(modules):
        fields.wrong("modules", "not each module once")
    return Ledger(modules, norms, truncations, events)


def _read_provenance(fields: JsonFields) -> Provenance:
    return Provenance(
        format=fields.text("format"),
        source=fields.text("source"),
        sha256=fields.text_or_null("sha256"),
    )
