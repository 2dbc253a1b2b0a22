"""The last step of every write: a manifest, and then HEAD."""

from __future__ import annotations

from datetime import datetime, timezone
from hashlib import sha256
from importlib.metadata import version as package_version
from pathlib import Path

from sharespace.store import atomic
from sharespace.store.layout import (
    HEAD,
    VERSIONS,
    Content,
    Manifest,
    ManifestRef,
    Operation,
    Version,
)
from sharespace.store.schema import head_to_json, manifest_to_json


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
    atomic.write_files(root / VERSIONS, [(ref.name, [data])])
    atomic.write_files(root, [(HEAD, [head_to_json(ref)])])
    return summary_of(ref, manifest)


def summary_of(ref: ManifestRef, manifest: Manifest) -> Version:
    """What ``history`` shows of a manifest."""
    count = len(manifest.content.tasks)
    return Version(ref.number, ref.sha256, manifest.created, manifest.operation, count)
