"""New versions made from manifests alone: no tensor file is read or written.

They work in the time of one manifest, and also where a task's file is damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from sharespace.errors import CorruptStoreError, StoreNotFoundError, TaskNotFoundError
from sharespace.store import atomic
from sharespace.store.directory import (
    clear_unfinished,
    no_version,
    read_head,
    read_manifest,
    refuse_links,
    versions_on_disk,
)
from sharespace.store.layout import LOCK, ManifestRef, Operation, TaskEntry, Version
from sharespace.store.objects import check_file
from sharespace.store.plan import check_writable
from sharespace.store.publish import publish
from sharespace.store.store import StorePath
from sharespace.subspace.state import check_new_names

Entries: TypeAlias = tuple[TaskEntry, ...]


def remove(path: StorePath, names: Iterable[str], *, timeout: float = 0.0) -> Version:
    """Leave tasks out of the next version; the subspace stays as it is.

    Raises:
        TaskNotFoundError: one of them is not in the current version.
        StoreNotFoundError, StoreLockedError, CorruptStoreError: as ``commit`` does.
    """
    gone = tuple(names)

    def change(entries: Entries) -> Entries:
        for name in gone:
            _find(entries, name)
        return tuple(entry for entry in entries if entry.name not in gone)

    return _edit(Path(path), Operation("remove", gone), change, timeout)


def rename(path: StorePath, old: str, new: str, *, timeout: float = 0.0) -> Version:
    """Give a task another name in the next version, in its place.

    Raises:
        TaskNotFoundError: there is no task ``old``.
        TaskExistsError: there is a task ``new``, or the name is empty.
        StoreNotFoundError, StoreLockedError, CorruptStoreError: as ``commit`` does.
    """

    def change(entries: Entries) -> Entries:
        _find(entries, old)
        check_new_names([new], [entry.name for entry in entries if entry.name != old])
        return tuple(replace(e, name=new) if e.name == old else e for e in entries)

    return _edit(Path(path), Operation("rename", (old, new)), change, timeout)


def _find(entries: Entries, name: str) -> None:
    if all(entry.name != name for entry in entries):
        known = ", ".join(repr(entry.name) for entry in entries[:10]) or "none"
        raise TaskNotFoundError(f"task {name!r}", "not in this store", f"Known tasks: {known}")


def _edit(
    root: Path, operation: Operation, change: Callable[[Entries], Entries], timeout: float
) -> Version:
    with atomic.disk_errors(root, "writing the Share model"):
        refuse_links(root)
        read_head(root)
        with atomic.lock(root / LOCK, timeout):
            head = read_head(root)
            current = read_manifest(root, head)
            changed = replace(current.content, tasks=change(current.content.tasks))
            check_writable(changed, operation)
            clear_unfinished(root, head.number)
            gathered = current.contributions
            return publish(root, head.number + 1, head, operation, changed, gathered)


def rollback(path: StorePath, version: int, *, timeout: float = 0.0) -> Version:
    """Go back to the content of an old version, as a new version; history is kept.

    What was gathered after that version can be gathered again.

    It works also where HEAD is damaged or lost. The old version's files are checked first.

    Raises:
        StoreNotFoundError: there is no store, or no such version.
        CorruptStoreError: a file of that version is damaged.
        StoreLockedError: another writer is at work.
    """
    root = Path(path)
    with atomic.disk_errors(root, "rolling back"):
        refuse_links(root)
        _committed(root, version)
        with atomic.lock(root / LOCK, timeout):
            head, ref = _committed(root, version)
            old = read_manifest(root, ref)
            for file in old.content.files.values():
                check_file(root, file, hashed=True)
            if head is not None:
                clear_unfinished(root, head.number)
            last = max([*versions_on_disk(root), head.number if head else 0])
            operation = Operation("rollback", version=version)
            return publish(root, last + 1, head, operation, old.content, old.contributions)


def _committed(root: Path, number: int) -> tuple[ManifestRef | None, ManifestRef]:
    """HEAD (None where it is damaged or lost) and the version of that number."""
    known = versions_on_disk(root)
    head: ManifestRef | None = None
    try:
        head = read_head(root)
        known = {n: ref for n, ref in known.items() if n <= head.number}
    except StoreNotFoundError:
        if not known:
            raise
    except CorruptStoreError:
        pass  # what a rollback repairs
    if number not in known:
        raise no_version(root, number, known)
    return head, known[number]
