"""A Share model on disk: commit, load, history.

Readers take no lock: what HEAD names never changes. Writers hold the lock, write new files
beside the old ones, and move HEAD last, in one rename. What a commit will write is planned and
checked before the disk is touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from sharespace.errors import (
    CorruptStoreError,
    MismatchError,
    StoreConflictError,
    StoreError,
)
from sharespace.files import disk_errors, lock
from sharespace.store.directory import (
    clear_unfinished,
    committed_versions,
    find_version,
    make_directories,
    manifest_bytes,
    publish,
    read_head,
    read_manifest,
    refuse_existing,
    refuse_links,
    summary_of,
)
from sharespace.store.objects import Payload, StoredFile, tensor_file, write_objects
from sharespace.store.schema import (
    DTYPES,
    LOCK,
    SHA256,
    Content,
    LayerEntry,
    Manifest,
    ManifestRef,
    Operation,
    TaskEntry,
    Version,
    manifest_from_json,
    manifest_to_json,
    summary_from_json,
)
from sharespace.store.stored_model import (
    SAMPLE_SUFFIX,
    StoredLayers,
    StoredTasks,
    StoredTensors,
    basis_names,
    lazy_model,
    refuse_non_finite,
    summarise,
    task_file,
)
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import ShareModel, Task

StorePath: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True, eq=False)
class Checkout:
    """A version of a store that was opened."""

    path: Path
    version: Version
    """To be given to ``commit`` as ``expected_parent``."""
    manifest: Manifest
    """All that is known without opening a tensor file."""
    model: ShareModel
    """Reads bases, tasks and what they keep when they are asked for."""


def checkout(path: StorePath, version: int | None = None, *, verify: bool = True) -> Checkout:
    """Open a version of the store at ``path``.

    Args:
        path: the store.
        version: its number; None: the current one.
        verify: check the hash of each tensor file when it is opened first. Manifests are always
            checked, and so are sizes, keys, shapes and dtypes.

    Returns:
        The version with its model, which reads bases and tasks when they are asked for.

    Raises:
        StoreNotFoundError: there is no store, or no such version.
        SchemaVersionError: a newer sharespace wrote it.
        CorruptStoreError: a file is missing or damaged. Tensor files raise it on first access.
        StoreError: the operating system refused to read.
    """
    root = Path(path)
    with disk_errors(root, "reading the Share model"):
        ref, manifest = _read_version(root, version)
    model = lazy_model(root, manifest.content, verify=verify)
    return Checkout(root, summary_of(ref, manifest), manifest, model)


def load(path: StorePath, version: int | None = None, *, verify: bool = True) -> ShareModel:
    """The model of ``checkout``, where the version that it came from is of no use."""
    return checkout(path, version, verify=verify).model


def _read_version(root: Path, number: int | None) -> tuple[ManifestRef, Manifest]:
    while True:
        ref = find_version(root, number)
        try:
            return ref, read_manifest(root, ref)
        except CorruptStoreError:
            # Another process may have committed and pruned between our two reads.
            if number is not None or read_head(root) == ref:
                raise


def commit(
    path: StorePath,
    model: ShareModel,
    *,
    operation: Operation,
    expected_parent: Version | None,
    timeout: float = 0.0,
    contributions: tuple[str, ...] = (),
) -> Version:
    """Write a model as the next version of the store at ``path``.

    A crash at any instant leaves the previous version whole and current. Files that the store
    has already are not written again.

    Args:
        path: the store; a directory that is made where there is none.
        model: what to write; parts of it that were read from a store are copied as files.
        operation: what made this version, for the history.
        expected_parent: the version that the model was made from (``Checkout.version``, or what
            the last ``commit`` returned); None makes a new store.
        timeout: seconds to wait for another writer.
        contributions: ids (SHA-256, hexadecimal) of contributions that the model has beyond its
            parent; they are recorded in this version and in all that follow.

    Returns:
        The new version.

    Raises:
        StoreExistsError: a new store was wanted and there is something already.
        StoreNotFoundError: there is no store and a parent was given.
        StoreConflictError: the current version is not ``expected_parent``, or has one of the
            contributions already.
        StoreLockedError: another writer is at work.
        MismatchError: bases and coefficients of the model do not fit together.
        StoreError: the model has something that cannot be written, or the disk refused.
    """
    root = Path(path)
    with disk_errors(root, "writing the Share model"):
        _refuse_early(root, expected_parent)
        # Hashing tensors may take long: done before the lock is taken, so that others can write.
        plan = plan_commit(model, operation)
        if expected_parent is None:
            make_directories(root)
        with lock(root / LOCK, timeout):
            parent = _check_parent(root, expected_parent)
            gathered = _with_contributions(root, parent, contributions)
            write_objects(root, plan.payloads)
            number = parent.number + 1 if parent else 1
            return publish(root, number, parent, operation, plan.content, gathered)


def _with_contributions(
    root: Path, parent: ManifestRef | None, new: tuple[str, ...]
) -> tuple[str, ...]:
    """The parent's contributions and the new ones."""
    if len(set(new)) < len(new) or not all(SHA256.fullmatch(x) for x in new):
        why = "they are not different SHA-256 in lower-case hexadecimal"
        raise StoreError(str(root), f"contributions cannot be recorded: {why}", "Correct them")
    known = read_manifest(root, parent).contributions if parent else ()
    repeated = next((x for x in new if x in known), None)
    if repeated is not None:
        why = f"contribution {repeated[:12]} was gathered before"
        raise StoreConflictError(str(root), why, "Load it again and leave it out")
    return (*known, *new)


def _refuse_early(root: Path, expected: Version | None) -> None:
    """Refuse before any work, and before anything is made on disk."""
    if expected is None:
        refuse_existing(root)
    else:
        read_head(root)
    refuse_links(root)


def _check_parent(root: Path, expected: Version | None) -> ManifestRef | None:
    """The parent of the new version, now that no other writer can move it."""
    if expected is None:
        refuse_existing(root)
        clear_unfinished(root, None)
        return None
    head = read_head(root)
    if head != expected.ref:
        why = f"version {head.number} was committed after version {expected.number} was loaded"
        raise StoreConflictError(str(root), why, "Load it again and repeat the change")
    clear_unfinished(root, head)
    return head


def history(path: StorePath) -> list[Version]:
    """The versions that are there, oldest first; the last one is current.

    Args:
        path: the store.

    Returns:
        A summary of each version; pruned ones are missing.

    Raises:
        StoreNotFoundError: there is no store.
        CorruptStoreError: HEAD or a manifest is damaged.
    """
    root = Path(path)
    with disk_errors(root, "reading the history"):
        refs = committed_versions(root).values()
        return [summary_from_json(manifest_bytes(root, ref), ref) for ref in refs]


@dataclass(frozen=True, eq=False)
class CommitPlan:
    """The content of a version, and its files by path."""

    content: Content
    payloads: Mapping[str, Payload]


def plan_commit(model: ShareModel, operation: Operation) -> CommitPlan:
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
    samples = _plan_tensors("base", model.base_samples, SAMPLE_SUFFIX)
    content = Content(
        base=model.base,
        fingerprint=model.fingerprint,
        settings=model.settings,
        dtype=model.dtype,
        layers=tuple(layers.values()),
        basis=basis.ref,
        tasks=tuple(entry for entry, _ in planned),
        base_samples=None if samples is None else samples.ref,
    )
    check_writable(content, operation)
    payloads = [basis, *(payload for _, files in planned for payload in files)]
    payloads += [samples] if samples is not None else []
    return CommitPlan(content, {payload.ref.file: payload for payload in payloads})


def _plan_basis(model: ShareModel) -> tuple[Payload, dict[str, LayerEntry]]:
    if isinstance(model.layers, StoredLayers) and model.layers.dtype == model.dtype:
        return model.layers.stored, model.layers.entries
    tensors: dict[str, Tensor] = {}
    for module, layer in model.layers.items():
        _check_layer(module, layer, model.dtype)
        left, right = basis_names(module)
        tensors[left], tensors[right] = layer.left_basis, layer.right_basis
    refuse_non_finite("the basis", tensors)
    return tensor_file("basis", tensors, None), _layer_entries(model)


def _layer_entries(model: ShareModel) -> dict[str, LayerEntry]:
    return {
        module: LayerEntry(
            module,
            layer.shape,
            layer.k,
            layer.cap,
            layer.certificate,
            layer.streamed,
            layer.groups,
        )
        for module, layer in model.layers.items()
    }


def known_starts(opened: Checkout) -> dict[str, dict[str, float]]:
    """What each task started from: task -> name of a known task -> weight.

    Names are those of the version, or of the latest one before it, in which the known task had the
    coefficients that were started from. Where no such version is stored any more, the name is that
    of the file.

    Args:
        opened: a version of a store.
    """
    entries = opened.manifest.content.tasks
    unnamed = {file for entry in entries for file, _ in entry.started_from}
    names: dict[str, str] = {}
    content, number = opened.manifest.content, opened.version.number
    while unnamed:
        files = {entry.coefficients.name: entry.name for entry in content.tasks}
        names |= {file: files[file] for file in unnamed & files.keys()}
        unnamed -= names.keys()
        number -= 1
        if number < 1 or not unnamed:
            break
        try:
            content = checkout(opened.path, number, verify=False).manifest.content
        except StoreError:
            break  # Pruned: its files say no more than their hashes.
    return {
        entry.name: {names.get(file, file): weight for file, weight in entry.started_from}
        for entry in entries
        if entry.started_from
    }


def coefficient_files(model: ShareModel, names: Iterable[str]) -> dict[str, str]:
    """Task -> name of the file that its coefficients have in a store, or would have.

    The name is a hash of the content, so that it says which coefficients were meant, whatever
    becomes of the task.

    Args:
        model: has the tasks.
        names: names of tasks.
    """
    tasks = model.tasks
    if isinstance(tasks, StoredTasks) and tasks.dtype == model.dtype:
        return {name: tasks.entries[name].coefficients.name for name in names}
    layers = _layer_entries(model)
    return {name: task_file(tasks[name], layers, model.dtype).ref.name for name in names}


def _check_layer(module: str, layer: LayerSubspace, dtype: torch.dtype) -> None:
    shape = layer.shape
    for basis, rows in (
        (layer.left_basis, shape.out_features),
        (layer.right_basis, shape.in_features),
    ):
        if basis.ndim != 2 or basis.shape[0] != rows or basis.dtype != dtype:
            described = f"a basis of {basis.dtype} {list(basis.shape)}"
            raise MismatchError(
                f"module {module}", f"{described} where {rows} rows of {dtype} belong"
            )


def _plan_tasks(
    model: ShareModel, layers: Mapping[str, LayerEntry]
) -> list[tuple[TaskEntry, list[Payload]]]:
    tasks = model.tasks
    if isinstance(tasks, StoredTasks) and tasks.layers == layers and tasks.dtype == model.dtype:
        return [(entry, _stored_files(tasks, entry)) for entry in tasks.entries.values()]
    return [_plan_task(name, task, layers, model.dtype) for name, task in tasks.items()]


def _stored_files(tasks: StoredTasks, entry: TaskEntry) -> list[Payload]:
    return [StoredFile(tasks.root, ref) for ref in entry.refs]


def _plan_task(
    name: str, task: Task, layers: Mapping[str, LayerEntry], dtype: torch.dtype
) -> tuple[TaskEntry, list[Payload]]:
    if name != task.name:
        raise MismatchError(f"task {name!r}", f"it is called {task.name!r} itself")
    coefficients = task_file(task, layers, dtype)
    kept_file = _plan_tensors("kept", task.kept)
    files = _plan_tensors("files", task.files)
    entry = TaskEntry(
        name,
        coefficients.ref,
        None if kept_file is None else kept_file.ref,
        summarise(task),
        None if files is None else files.ref,
        tuple(task.labels),
        tuple(sorted(task.started_from.items())),
    )
    return entry, [payload for payload in (coefficients, kept_file, files) if payload is not None]


def _plan_tensors(role: str, tensors: Mapping[str, Tensor], suffix: str = "") -> Payload | None:
    if isinstance(tensors, StoredTensors):
        return tensors.stored
    if not tensors:
        return None
    # The mapping itself where keys stay as they are: it may read one tensor at a time.
    named = {key + suffix: tensors[key] for key in tensors} if suffix else tensors
    return tensor_file(role, named, None)


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
