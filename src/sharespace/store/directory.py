"""The directory of a store: its HEAD, its manifests, and what a crash may have left in it.

Every write ends here, in ``publish``: a manifest, and then HEAD (``share.json``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from hashlib import sha256
from importlib.metadata import version as package_version
from pathlib import Path

from sharespace.errors import StoreError, StoreExistsError, StoreNotFoundError
from sharespace.files import (
    TEMPORARY,
    make_directory,
    names_in,
    read_bytes,
    remove_files,
    remove_temporary,
    write_files,
)
from sharespace.store.schema import (
    HEAD,
    LOCK,
    MANIFEST_NAME,
    MAX_HEAD_BYTES,
    MAX_MANIFEST_BYTES,
    OBJECT_NAME,
    OBJECTS,
    VERSIONS,
    Content,
    Manifest,
    ManifestRef,
    Operation,
    Version,
    corrupt,
    head_from_json,
    head_to_json,
    manifest_from_json,
    manifest_to_json,
)

_ELSEWHERE = "Add to it, or choose another path"


def read_head(root: Path) -> ManifestRef:
    """The current version.

    Raises:
        StoreNotFoundError: there is no Share model.
        SchemaVersionError, CorruptStoreError: HEAD is not readable.
    """
    path = root / HEAD
    try:
        data = read_bytes(path, MAX_HEAD_BYTES, partial(corrupt, str(path)))
    except (FileNotFoundError, NotADirectoryError):
        why = f"no Share model there ({HEAD} is missing)"
        raise StoreNotFoundError(
            str(root), why, "Check the path; `sharespace init` makes one"
        ) from None
    return head_from_json(data, str(path))


def versions_on_disk(root: Path) -> dict[int, ManifestRef]:
    """Number -> manifest, ascending, including that of an unfinished commit.

    Raises:
        CorruptStoreError: a number stands there twice, and HEAD was not asked which one is meant.
    """
    return {number: _only(root, refs) for number, refs in _manifests(root).items()}


def _manifests(root: Path) -> dict[int, list[ManifestRef]]:
    """Number -> every manifest of that number, ascending."""
    refs: dict[int, list[ManifestRef]] = {}
    for name in sorted(names_in(root / VERSIONS)):
        if match := MANIFEST_NAME.fullmatch(name):
            ref = ManifestRef(int(match["number"]), match["sha256"])
            refs.setdefault(ref.number, []).append(ref)
    return dict(sorted(refs.items()))


def _only(root: Path, refs: list[ManifestRef]) -> ManifestRef:
    if len(refs) > 1:
        raise corrupt(str(root / VERSIONS), f"version {refs[0].number} stands there twice")
    return refs[0]


def committed_versions(root: Path) -> dict[int, ManifestRef]:
    """Number -> manifest, ascending, up to the one that HEAD names; pruned ones are missing.

    Two copies of a store that were written apart and then put over each other have two manifests of
    one number: those that HEAD's version descends from are the store's.

    Raises:
        StoreNotFoundError, CorruptStoreError: HEAD is not readable, or does not descend from any of
            the manifests of one number.
    """
    head = read_head(root)
    older = {number: refs for number, refs in _manifests(root).items() if number < head.number}
    # The ancestors are read only where they are needed: a long history has many manifests.
    doubtful = [number for number, refs in older.items() if len(refs) > 1]
    ancestors = _ancestors(root, head, doubtful[0]) if doubtful else {}
    known = {n: ancestors.get(n) or _only(root, refs) for n, refs in older.items()}
    return {**known, head.number: head}


def _ancestors(root: Path, head: ManifestRef, oldest: int) -> dict[int, ManifestRef]:
    """Number -> manifest of those that HEAD's version descends from, as far as they are there."""
    ancestors: dict[int, ManifestRef] = {}
    ref: ManifestRef | None = head
    while ref is not None and ref.number > oldest and (root / ref.file).exists():
        ref = read_manifest(root, ref).parent
        if ref is not None:
            ancestors[ref.number] = ref
    return {number: ref for number, ref in ancestors.items() if (root / ref.file).exists()}


def stray_manifests(root: Path) -> list[ManifestRef]:
    """Manifests beside those of the committed versions, under the same numbers; no part of the
    store, and removed by the next writer."""
    committed = committed_versions(root)
    return [
        ref
        for number, refs in _manifests(root).items()
        for ref in refs
        if number in committed and ref != committed[number]
    ]


def find_version(root: Path, number: int | None) -> ManifestRef:
    """A committed version; None: the current one.

    Raises:
        StoreNotFoundError: there is no such version.
    """
    head = read_head(root)
    if number is None or number == head.number:
        return head
    known = committed_versions(root)
    if number not in known:
        raise no_version(root, number, known)
    return known[number]


def no_version(root: Path, number: int, known: dict[int, ManifestRef]) -> StoreNotFoundError:
    """The error for a version that is not there."""
    listed = ", ".join(map(str, list(known)[-20:])) or "none"
    return StoreNotFoundError(f"version {number} of {root}", "not there", f"Versions: {listed}")


def manifest_bytes(root: Path, ref: ManifestRef) -> bytes:
    """A manifest's bytes, which are those that were committed.

    Raises:
        CorruptStoreError: it is missing, or has other bytes.
    """
    path = root / ref.file
    try:
        data = read_bytes(path, MAX_MANIFEST_BYTES, partial(corrupt, str(path)))
    except (FileNotFoundError, NotADirectoryError):
        raise corrupt(str(path), "missing") from None
    if sha256(data).hexdigest() != ref.sha256:
        raise corrupt(str(path), "its bytes are not those that were committed (sha256)")
    return data


def read_manifest(root: Path, ref: ManifestRef) -> Manifest:
    """A version's manifest.

    Raises:
        SchemaVersionError: a newer sharespace wrote it.
        CorruptStoreError: it is missing or broken.
    """
    path = str(root / ref.file)
    manifest = manifest_from_json(manifest_bytes(root, ref), path)
    if manifest.number != ref.number:
        raise corrupt(path, f"it says that it is version {manifest.number}")
    return manifest


def publish(
    root: Path,
    number: int,
    parent: ManifestRef | None,
    operation: Operation,
    content: Content,
    contributions: tuple[str, ...] = (),
) -> Version:
    """Make a version current; its tensor files are durable, and the caller holds the lock.

    Args:
        contributions: all that were gathered up to this version, the parent's included.
    """
    created = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    tool = f"sharespace {package_version('sharespace')}"
    manifest = Manifest(number, parent, created, tool, operation, content, contributions)
    data = manifest_to_json(manifest)
    ref = ManifestRef(number, sha256(data).hexdigest())
    # HEAD last: until it is renamed, every reader still sees the parent, and a crash in between
    # leaves a manifest that nobody names and that the next writer removes.
    write_files(root / VERSIONS, [(ref.name, [data])])
    move_head(root, ref)
    return summary_of(ref, manifest)


def move_head(root: Path, ref: ManifestRef) -> None:
    """Make a version current, whose files are durable.

    Raises:
        StoreError: it is current, but the disk did not say that this is durable.
        OSError: it is not current.
    """
    try:
        write_files(root, [(HEAD, [head_to_json(ref)])])
    except OSError as error:
        # The rename is the commit, and only then the directory is synced: a failure of that must
        # not make anybody repeat what has been done.
        if read_head(root) != ref:
            raise
        why = (
            f"version {ref.number} is current, but the disk did not confirm that it would survive "
            f"a power loss ({error.strerror or error})"
        )
        remedy = "Do not repeat the change; check the disk, then `sharespace verify`"
        raise StoreError(str(root), why, remedy) from error


def summary_of(ref: ManifestRef, manifest: Manifest) -> Version:
    """What ``history`` shows of a manifest."""
    count = len(manifest.content.tasks)
    return Version(ref.number, ref.sha256, manifest.created, manifest.operation, count)


def refuse_existing(root: Path) -> None:
    """Refuse to make a store where there is something, except what a crashed ``init`` left.

    Raises:
        StoreExistsError: there is a Share model, or something else.
    """
    if not os.path.lexists(root):
        return
    if not root.is_dir():
        raise StoreExistsError(str(root), "there is a file already", "Choose another path")
    if os.path.lexists(root / HEAD):
        raise StoreExistsError(str(root), "there is a Share model already", _ELSEWHERE)
    foreign = next(_foreign(root), None)
    if foreign is not None:
        why = f"the directory is not empty: {foreign.name!r}"
        raise StoreExistsError(str(root), why, "Choose an empty or a new directory")
    # A crashed ``init`` leaves at most the manifest of version 1.
    if any(number > 1 for number in versions_on_disk(root)):
        why = f"a Share model that lost its {HEAD}"
        raise StoreExistsError(str(root), why, "`sharespace rollback` to one of its versions")


def _foreign(root: Path) -> Iterator[Path]:
    """Paths in the directory that no ``init`` makes."""
    patterns = {OBJECTS: OBJECT_NAME, VERSIONS: MANIFEST_NAME}
    for name in names_in(root):
        if name not in (OBJECTS, VERSIONS, LOCK) and not name.startswith(TEMPORARY):
            yield root / name
    for directory, pattern in patterns.items():
        for name in names_in(root / directory):
            if not pattern.fullmatch(name) and not name.startswith(TEMPORARY):
                yield root / directory / name


def refuse_links(root: Path) -> None:
    """Refuse to write where a link leads out of the store.

    Raises:
        StoreError: a directory of the store is a symbolic link.
    """
    for name in (OBJECTS, VERSIONS):
        if (root / name).is_symlink():
            why = "a symbolic link; writing would change files outside of the store"
            raise StoreError(str(root / name), why, "Copy the store to a place of its own")


def make_directories(root: Path) -> None:
    """Create a store's directories."""
    for path in (root, root / OBJECTS, root / VERSIONS):
        make_directory(path)


def clear_unfinished(root: Path, head: ManifestRef | None) -> None:
    """Remove what a crashed writer left: temporary files, manifests that HEAD never named.

    Only for the holder of the lock. Objects without a manifest stay; the next commit may use
    them, and ``prune`` removes them.

    Args:
        head: what HEAD names; None: there is no HEAD.
    """
    for directory in (root, root / OBJECTS, root / VERSIONS):
        remove_temporary(directory)
    current = head.number if head else 0
    unnamed = [r.name for n, refs in _manifests(root).items() if n > current for r in refs]
    unnamed += [ref.name for ref in stray_manifests(root)] if head else []
    if unnamed:
        remove_files(root / VERSIONS, unnamed)
