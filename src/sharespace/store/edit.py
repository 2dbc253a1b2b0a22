"""Verbs that make a version from manifests alone, and those that remove or receive whole versions.

``remove``, ``rename`` and ``rollback`` read and write no tensor file: they work in the time of one
manifest, and also where a task's file is damaged. ``prune`` removes old versions and the files that
no version needs any more. ``receive`` brings the versions of another copy of the same store here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from sharespace.errors import (
    CorruptStoreError,
    OptionError,
    StoreConflictError,
    StoreNotFoundError,
    TaskNotFoundError,
)
from sharespace.files import disk_errors, lock, remove_files, write_files
from sharespace.store.commits import StorePath, check_writable
from sharespace.store.directory import (
    clear_unfinished,
    committed_versions,
    make_directories,
    manifest_bytes,
    move_head,
    no_version,
    publish,
    read_head,
    read_manifest,
    refuse_existing,
    refuse_links,
    summary_of,
    versions_on_disk,
)
from sharespace.store.objects import Payload, StoredFile, check_file, write_objects
from sharespace.store.schema import (
    HEAD,
    LOCK,
    OBJECT_NAME,
    OBJECTS,
    VERSIONS,
    ManifestRef,
    Operation,
    TaskEntry,
    Version,
)
from sharespace.subspace.state import check_new_names

_Tasks: TypeAlias = tuple[TaskEntry, ...]


def remove(path: StorePath, names: Iterable[str], *, timeout: float = 0.0) -> Version:
    """Leave tasks out of the next version; the subspace stays as it is.

    Args:
        path: the store.
        names: of the tasks.
        timeout: seconds to wait for another writer.

    Returns:
        The new version.

    Raises:
        TaskNotFoundError: one of them is not in the current version.
        StoreNotFoundError, StoreLockedError, CorruptStoreError: as ``commit`` does.
    """
    removed = tuple(names)

    def change(entries: _Tasks) -> _Tasks:
        for name in removed:
            _require_task(entries, name)
        return tuple(entry for entry in entries if entry.name not in removed)

    return _next_version(Path(path), Operation("remove", removed), change, timeout)


def rename(path: StorePath, old: str, new: str, *, timeout: float = 0.0) -> Version:
    """Give a task another name in the next version, in its place.

    Args:
        path: the store.
        old: the task's name.
        new: the name that it gets.
        timeout: seconds to wait for another writer.

    Returns:
        The new version.

    Raises:
        TaskNotFoundError: there is no task ``old``.
        TaskExistsError: there is a task ``new``.
        OptionError: no new task may have that name.
        StoreNotFoundError, StoreLockedError, CorruptStoreError: as ``commit`` does.
    """

    def change(entries: _Tasks) -> _Tasks:
        _require_task(entries, old)
        check_new_names([new], [entry.name for entry in entries if entry.name != old])
        return tuple(replace(e, name=new) if e.name == old else e for e in entries)

    return _next_version(Path(path), Operation("rename", (old, new)), change, timeout)


def _require_task(tasks: _Tasks, name: str) -> None:
    if all(entry.name != name for entry in tasks):
        known = ", ".join(repr(entry.name) for entry in tasks[:10]) or "none"
        raise TaskNotFoundError(f"task {name!r}", "not in this store", f"Known tasks: {known}")


def _next_version(
    root: Path, operation: Operation, change: Callable[[_Tasks], _Tasks], timeout: float
) -> Version:
    with disk_errors(root, "writing the Share model"):
        refuse_links(root)
        read_head(root)
        with lock(root / LOCK, timeout):
            head = read_head(root)
            current = read_manifest(root, head)
            changed = replace(current.content, tasks=change(current.content.tasks))
            check_writable(changed, operation)
            clear_unfinished(root, head)
            gathered = current.contributions
            return publish(root, head.number + 1, head, operation, changed, gathered)


def rollback(path: StorePath, version: int, *, timeout: float = 0.0) -> Version:
    """Go back to the content of an old version, as a new version; history is kept.

    What was gathered after that version can be gathered again. It works also where HEAD is damaged
    or lost. The old version's files are checked first.

    Args:
        path: the store.
        version: number of the version to go back to.
        timeout: seconds to wait for another writer.

    Returns:
        The new version.

    Raises:
        StoreNotFoundError: there is no store, or no such version.
        CorruptStoreError: a file of that version is damaged.
        StoreLockedError: another writer is at work.
    """
    root = Path(path)
    with disk_errors(root, "rolling back"):
        refuse_links(root)
        _committed(root, version)
        with lock(root / LOCK, timeout):
            head, ref = _committed(root, version)
            old = read_manifest(root, ref)
            for file in old.content.files.values():
                check_file(root, file, hashed=True)
            if head is not None:
                clear_unfinished(root, head)
            last = max([*versions_on_disk(root), head.number if head else 0])
            operation = Operation("rollback", version=version)
            return publish(root, last + 1, head, operation, old.content, old.contributions)


def _committed(root: Path, number: int) -> tuple[ManifestRef | None, ManifestRef]:
    """HEAD (None where it is damaged or lost) and the version of that number."""
    head: ManifestRef | None = None
    try:
        head = read_head(root)
    except StoreNotFoundError:
        known = versions_on_disk(root)
        if not known:
            raise
    except CorruptStoreError:
        known = versions_on_disk(root)  # a damaged HEAD is what a rollback repairs
    else:
        # The file that HEAD names may itself be what is damaged or missing.
        known = committed_versions(root)
        if not (root / head.file).exists():
            del known[head.number]
    if number not in known:
        raise no_version(root, number, known)
    return head, known[number]


@dataclass(frozen=True)
class Pruned:
    """What ``prune`` removed from a store."""

    versions: tuple[int, ...]
    """Numbers of the removed versions."""
    files: int
    """Tensor files, those of crashed commits included."""
    bytes: int
    """Size of the removed tensor files."""


def prune(path: StorePath, *, keep: int, timeout: float = 0.0) -> Pruned:
    """Remove all but the last ``keep`` versions, and every tensor file that none of them needs.

    The current version stays whole at every instant. A model that was loaded from a removed
    version can read no more of its files.

    Args:
        path: the store.
        keep: number of versions that stay, from the current one backwards.
        timeout: seconds to wait for another writer.

    Returns:
        The removed versions, and the files and bytes that they took.

    Raises:
        OptionError: ``keep`` is less than 1.
        StoreNotFoundError: there is no store.
        CorruptStoreError: a version that stays is damaged, so what it needs is not known.
        StoreLockedError: another writer is at work.
    """
    if keep < 1:
        raise OptionError("keep", f"{keep} versions", "At least the current one must stay")
    root = Path(path)
    with disk_errors(root, "pruning"):
        refuse_links(root)
        read_head(root)
        with lock(root / LOCK, timeout):
            clear_unfinished(root, read_head(root))
            return _prune(root, keep)


def _prune(root: Path, keep: int) -> Pruned:
    refs = list(committed_versions(root).values())
    old, remaining = refs[:-keep], refs[-keep:]
    needed = {file for ref in remaining for file in read_manifest(root, ref).content.files}
    # Manifests go first: a version whose manifest is there has all its files.
    remove_files(root / VERSIONS, [ref.name for ref in old])
    unused = {
        path.name: path.lstat().st_size
        for path in (root / OBJECTS).iterdir()
        if OBJECT_NAME.fullmatch(path.name) and f"{OBJECTS}/{path.name}" not in needed
    }
    remove_files(root / OBJECTS, unused)
    return Pruned(tuple(ref.number for ref in old), len(unused), sum(unused.values()))


def receive(path: StorePath, source: StorePath, *, timeout: float = 0.0) -> Version | None:
    """Bring a store to the current version of a copy of it, or make it.

    Only forwards: the version that is current here must be one of the copy's. Every file is hashed
    while it is copied; HEAD moves last, so that a crash leaves the version that was current.

    Args:
        path: the store here; made where nothing is.
        source: a directory with the copy.
        timeout: seconds to wait for another writer.

    Returns:
        The version that is current now; None where nothing new is there.

    Raises:
        StoreConflictError: each of the two has a version that the other has not.
        StoreExistsError: something else is at the path.
        StoreNotFoundError: there is no store at the source.
        CorruptStoreError, StoreError: a file of the copy is damaged, or the disk refused.
    """
    root, copy = Path(path), Path(source)
    with disk_errors(root, "receiving versions"):
        copied = committed_versions(copy)
        refuse_links(root)
        if not _is_behind(root, copied):
            return None
        make_directories(root)
        with lock(root / LOCK, timeout):
            if not _is_behind(root, copied):
                return None
            clear_unfinished(root, read_head(root) if os.path.lexists(root / HEAD) else None)
            return _copy_versions(root, copy, list(copied.values()))


def _is_behind(root: Path, copied: dict[int, ManifestRef]) -> bool:
    """Whether the copy has something new for the store here."""
    if not os.path.lexists(root / HEAD):
        leftovers = set(versions_on_disk(root).values())
        # What a killed ``receive`` of the same copy left is no reason to refuse.
        if not leftovers or not leftovers <= set(copied.values()):
            refuse_existing(root)
        return True
    local, copied_head = committed_versions(root), max(copied)
    head = max(local)
    if local.get(copied_head) == copied[copied_head]:
        return False
    if copied.get(head) != local[head]:
        raise StoreConflictError(
            str(root),
            f"version {head} here and version {copied_head} there do not follow from each other",
            "Bring what is there to a new directory, then `sharespace union`",
        )
    return True


def _copy_versions(root: Path, copy: Path, refs: list[ManifestRef]) -> Version:
    """Copy objects, then manifests, then HEAD; what is here already is not written again."""
    payloads: dict[str, Payload] = {}
    for ref in refs:
        files = read_manifest(copy, ref).content.files
        payloads.update({path: StoredFile(copy, file) for path, file in files.items()})
    write_objects(root, payloads)
    present = set(versions_on_disk(root).values())
    missing = [(ref.name, [manifest_bytes(copy, ref)]) for ref in refs if ref not in present]
    write_files(root / VERSIONS, missing)
    move_head(root, refs[-1])
    return summary_of(refs[-1], read_manifest(root, refs[-1]))
