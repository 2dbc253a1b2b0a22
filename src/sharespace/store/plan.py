"""What a commit will write, known and checked before the disk is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.errors import CorruptStoreError, MismatchError, StoreError
from sharespace.store.layout import DTYPES, Content, LayerEntry, Manifest, Operation, TaskEntry
from sharespace.store.lazy import StoredKept, StoredLayers, StoredTasks, basis_names
from sharespace.store.objects import Payload, StoredFile, tensor_file
from sharespace.store.schema import manifest_from_json, manifest_to_json
from sharespace.store.taskfile import refuse_non_finite, summarise, task_file
from sharespace.subspace.state import LayerSubspace, ShareModel, Task


@dataclass(frozen=True, eq=False)
class Plan:
    """The content of a version, and its files by path."""

    content: Content
    payloads: Mapping[str, Payload]


def plan_commit(model: ShareModel, operation: Operation) -> Plan:
    """Describe a model as the content of a version.

    Parts that were read from a store and not replaced since are taken as files, unread.

    Raises:
        MismatchError: bases or coefficients do not fit together.
        StoreError: something in the model cannot be written.
    """
    if model.dtype not in DTYPES.values():
        raise MismatchError("the Share model", f"{model.dtype} is none of {', '.join(DTYPES)}")
    basis, layers = _plan_basis(model)
    planned = _plan_tasks(model, layers)
    content = Content(
        base=model.base,
        fingerprint=model.fingerprint,
        settings=model.settings,
        dtype=model.dtype,
        layers=tuple(layers.values()),
        basis=basis.ref,
        tasks=tuple(entry for entry, _ in planned),
    )
    check_writable(content, operation)
    payloads = [basis, *(payload for _, files in planned for payload in files)]
    return Plan(content, {payload.ref.file: payload for payload in payloads})


def _plan_basis(model: ShareModel) -> tuple[Payload, dict[str, LayerEntry]]:
    if isinstance(model.layers, StoredLayers) and model.layers.dtype == model.dtype:
        return model.layers.stored, model.layers.entries
    tensors: dict[str, Tensor] = {}
    entries: dict[str, LayerEntry] = {}
    for module, layer in model.layers.items():
        _check_layer(module, layer, model.dtype)
        left, right = basis_names(module)
        tensors[left], tensors[right] = layer.left_basis, layer.right_basis
        entries[module] = LayerEntry(
            module,
            layer.shape,
            layer.k,
            layer.cap,
            layer.certificate,
            layer.streamed,
            layer.parts,
        )
    refuse_non_finite("the basis", tensors)
    return tensor_file("basis", tensors, None), entries


def _check_layer(module: str, layer: LayerSubspace, dtype: torch.dtype) -> None:
    shape = layer.shape
    for basis, rows in (
        (layer.left_basis, shape.out_features),
        (layer.right_basis, shape.in_features),
    ):
        if basis.ndim != 2 or basis.shape[0] != rows or basis.dtype != dtype:
            found = f"a basis of {basis.dtype} {list(basis.shape)}"
            raise MismatchError(f"module {module}", f"{found} where {rows} rows of {dtype} belong")


def _plan_tasks(
    model: ShareModel, layers: Mapping[str, LayerEntry]
) -> list[tuple[TaskEntry, list[Payload]]]:
    tasks = model.tasks
    if isinstance(tasks, StoredTasks) and tasks.layers == layers and tasks.dtype == model.dtype:
        return [(entry, _stored_files(tasks, entry)) for entry in tasks.entries.values()]
    return [_plan_task(name, task, layers, model.dtype) for name, task in tasks.items()]


def _stored_files(tasks: StoredTasks, entry: TaskEntry) -> list[Payload]:
    refs = [entry.coefficients] if entry.kept is None else [entry.coefficients, entry.kept]
    return [StoredFile(tasks.root, ref) for ref in refs]


def _plan_task(
    name: str, task: Task, layers: Mapping[str, LayerEntry], dtype: torch.dtype
) -> tuple[TaskEntry, list[Payload]]:
    if name != task.name:
        raise MismatchError(f"task {name!r}", f"it is called {task.name!r} itself")
    coefficients = task_file(task, layers, dtype)
    kept = _plan_kept(task.kept)
    entry = TaskEntry(name, coefficients.ref, None if kept is None else kept.ref, summarise(task))
    return entry, [coefficients] if kept is None else [coefficients, kept]


def _plan_kept(kept: Mapping[str, Tensor]) -> Payload | None:
    if isinstance(kept, StoredKept):
        return kept.stored
    return tensor_file("kept", kept, None) if kept else None


def check_writable(content: Content, operation: Operation) -> None:
    """Refuse what would not be read back as it is: NaN bounds, surrogate pairs in names ...

    Raises:
        StoreError: there is something of that kind.
    """
    draft = Manifest(1, None, "2000-01-01T00:00:00Z", "", operation, content)
    try:
        same = manifest_from_json(manifest_to_json(draft), "the Share model") == draft
    except (CorruptStoreError, ValueError, TypeError) as error:
        why = error.why if isinstance(error, CorruptStoreError) else str(error)
        raise StoreError("the Share model", f"it cannot be written: {why}") from error
    if not same:
        why = "a name or a setting would not be read back as it is (a surrogate pair, a list)"
        raise StoreError("the Share model", f"it cannot be written: {why}", "Rename it")
