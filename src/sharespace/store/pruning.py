"""Remove old versions and the files that no version needs any more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sharespace.errors import OptionError
from sharespace.store import atomic
from sharespace.store.directory import (
    clear_unfinished,
    committed_versions,
    read_head,
    read_manifest,
    refuse_links,
)
from sharespace.store.layout import LOCK, OBJECT_NAME, OBJECTS, VERSIONS
from sharespace.store.store import StorePath


@dataclass(frozen=True)
class Pruned:
    """What ``prune`` removed."""

    versions: tuple[int, ...]
    files: int
    """Tensor files, those of crashed commits included."""
    bytes: int
    """Of the tensor files."""


def prune(path: StorePath, *, keep: int, timeout: float = 0.0) -> Pruned:
    """Remove all but the last ``keep`` versions, and every tensor file that none of them needs.

    The current version stays whole at every instant. A model that was loaded from a removed
    version can read no more of its files.

    Raises:
        OptionError: ``keep`` is less than 1.
        StoreNotFoundError: there is no store.
        CorruptStoreError: a version that stays is damaged, so what it needs is not known.
        StoreLockedError: another writer is at work.
    """
    if keep < 1:
        raise OptionError("keep", f"{keep} versions", "At least the current one must stay")
    root = Path(path)
    with atomic.disk_errors(root, "pruning"):
        refuse_links(root)
        read_head(root)
        with atomic.lock(root / LOCK, timeout):
            clear_unfinished(root, read_head(root).number)
            return _prune(root, keep)


def _prune(root: Path, keep: int) -> Pruned:
    refs = list(committed_versions(root).values())
    old, kept = refs[:-keep], refs[-keep:]
    needed = {f for ref in kept for f in read_manifest(root, ref).content.files}
    # Manifests go first: a version whose manifest is there has all its files.
    atomic.remove_files(root / VERSIONS, [ref.name for ref in old])
    unused = {
        path.name: path.lstat().st_size
        for path in (root / OBJECTS).iterdir()
        if OBJECT_NAME.fullmatch(path.name) and f"{OBJECTS}/{path.name}" not in needed
    }
    atomic.remove_files(root / OBJECTS, unused)
    return Pruned(tuple(ref.number for ref in old), len(unused), sum(unused.values()))
