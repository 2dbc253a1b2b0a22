"""Versions of another copy of the same store, brought here as they are."""

from __future__ import annotations

import os
from pathlib import Path

from sharespace.errors import StoreConflictError
from sharespace.store import atomic
from sharespace.store.directory import (
    clear_unfinished,
    committed_versions,
    make_directories,
    manifest_bytes,
    read_head,
    read_manifest,
    refuse_existing,
    refuse_links,
    versions_on_disk,
)
from sharespace.store.layout import HEAD, LOCK, VERSIONS, ManifestRef, Version
from sharespace.store.objects import Payload, StoredFile, write_objects
from sharespace.store.publish import summary_of
from sharespace.store.schema import head_to_json
from sharespace.store.store import StorePath


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
    root, other = Path(path), Path(source)
    with atomic.disk_errors(root, "receiving versions"):
        theirs = committed_versions(other)
        refuse_links(root)
        if not _is_behind(root, theirs):
            return None
        make_directories(root)
        with atomic.lock(root / LOCK, timeout):
            if not _is_behind(root, theirs):
                return None
            clear_unfinished(root, read_head(root).number if os.path.lexists(root / HEAD) else 0)
            return _copy(root, other, list(theirs.values()))


def _is_behind(root: Path, theirs: dict[int, ManifestRef]) -> bool:
    """Whether the copy has something new for the store here."""
    if not os.path.lexists(root / HEAD):
        left = set(versions_on_disk(root).values())
        # What a killed ``receive`` of the same copy left is no reason to refuse.
        if not left or not left <= set(theirs.values()):
            refuse_existing(root)
        return True
    ours, head = committed_versions(root), max(theirs)
    current = max(ours)
    if ours.get(head) == theirs[head]:
        return False
    if theirs.get(current) != ours[current]:
        raise StoreConflictError(
            str(root),
            f"version {current} here and version {head} there do not follow from each other",
            "Bring what is there to a new directory, then `sharespace union`",
        )
    return True


def _copy(root: Path, other: Path, refs: list[ManifestRef]) -> Version:
    """Objects, then manifests, then HEAD; what is here already is not written again."""
    payloads: dict[str, Payload] = {}
    for ref in refs:
        files = read_manifest(other, ref).content.files
        payloads.update({path: StoredFile(other, file) for path, file in files.items()})
    write_objects(root, payloads)
    here = set(versions_on_disk(root).values())
    new = [(ref.name, [manifest_bytes(other, ref)]) for ref in refs if ref not in here]
    atomic.write_files(root / VERSIONS, new)
    atomic.write_files(root, [(HEAD, [head_to_json(refs[-1])])])
    return summary_of(refs[-1], read_manifest(root, refs[-1]))
