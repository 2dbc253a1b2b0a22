"""Read a stored Share model into ``Facts``."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sharespace.evaluate.basis_changes import step_change
from sharespace.extras import require
from sharespace.page.facts import Facts, LayerFacts, Parts, TaskFacts, VersionFacts
from sharespace.page.families import relations
from sharespace.page.scores import stored_scores
from sharespace.page.study import study
from sharespace.store import Checkout, checkout, history
from sharespace.subspace.fidelity import TaskFidelity, fidelity
from sharespace.subspace.reconstruct import rank
from sharespace.subspace.stored import Storing, storing

MOST_COMPARED = 600
"""Tasks that are compared with each other; of more, so many evenly spaced ones."""
MOST_TURNED = 1 << 28
"""Bytes of bases that are compared along the history; later versions are then left out."""


def read_facts(path: str | os.PathLike[str], version: int | None = None) -> Facts:
    """All that a report says about a version.

    Args:
        path: of the store.
        version: its number; None: the current one.

    Raises:
        StoreNotFoundError, CorruptStoreError, SchemaVersionError: see ``sharespace.errors``.
        MissingExtraError: scipy is not installed.
    """
    # A missing one is told before the work, not after it.
    require("scipy.cluster.hierarchy", "report")
    root = Path(path).absolute()
    opened = checkout(root, version)
    content = opened.manifest.content
    kept = fidelity(opened.model).tasks
    names = list(opened.model.tasks)
    how = storing(opened.model.tasks.values(), {e.module: e for e in content.layers})
    compared = evenly(names, MOST_COMPARED)
    found = study(opened.model, compared)
    versions = _versions(root, opened)
    return Facts(
        name=root.name,
        version=opened.version.number,
        created=opened.version.created,
        base=content.base.id,
        settings=content.settings,
        dtype=str(content.dtype).removeprefix("torch."),
        tasks=tuple(_tasks(opened, kept, how)),
        layers=tuple(_layers(opened, how)),
        parts=_parts(root, opened, versions, how),
        versions=versions,
        study=found,
        relations=relations(found.cosines),
        scores=stored_scores(root, content),
        contributions=len(opened.manifest.contributions),
        left_out=len(names) - len(compared),
    )


def evenly(names: Sequence[str], most: int) -> list[str]:
    """At most so many of the names, evenly spaced, in order."""
    if len(names) <= most:
        return list(names)
    return [names[i * len(names) // most] for i in range(most)]


def _layers(opened: Checkout, how: Storing) -> Iterator[LayerFacts]:
    itemsize = opened.manifest.content.dtype.itemsize
    for entry in opened.manifest.content.layers:
        shape, (left, right) = entry.shape, entry.k
        numbers = left * shape.out_features + right * shape.in_features
        yield LayerFacts(
            entry.module,
            shape,
            entry.k,
            entry.cap,
            stored=how.layers[entry.module],
            basis=numbers * itemsize,
            streamed=entry.streamed,
            subspaces=max(len(entry.parts), 1),
        )


def _tasks(opened: Checkout, kept: Mapping[str, TaskFidelity], how: Storing) -> Iterator[TaskFacts]:
    for place, entry in enumerate(opened.manifest.content.tasks, 1):
        task = opened.model.tasks[entry.name]
        ranks = [rank(value) for value in task.coefficients.values()]
        files = [entry.coefficients, *([entry.kept] if entry.kept else [])]
        yield TaskFacts(
            name=entry.name,
            place=place,
            kept=kept[entry.name],
            p=(min(ranks, default=0), max(ranks, default=0)),
            stored=how.tasks[entry.name],
            ways=how.ways[entry.name],
            norm=task.ledger.total_norm,
            bytes=sum(ref.bytes for ref in files),
            adapter_bytes=task.adapter_bytes,
            format=task.provenance.format,
            source=task.provenance.source,
            sha256=task.provenance.sha256,
        )


def _versions(root: Path, opened: Checkout) -> tuple[VersionFacts, ...]:
    """The history up to the version that was opened."""
    found: list[VersionFacts] = []
    seen: set[str] = set()
    before: Checkout | None = None
    budget = MOST_TURNED
    for version in history(root):
        if version.number > opened.version.number:
            break
        here = checkout(root, version.number)
        budget -= _to_read(before, here)
        turn = _turn(before, here) if before and budget >= 0 else None
        found.append(_version(root, here, seen, turn))
        seen.update(here.manifest.content.files)
        before = here
    return tuple(found)


def _to_read(before: Checkout | None, here: Checkout) -> int:
    """Bytes of bases that it takes to compare two versions."""
    if before is None or before.manifest.content.basis == here.manifest.content.basis:
        return 0
    return here.manifest.content.basis.bytes


def _turn(before: Checkout, here: Checkout) -> float | None:
    """Degrees between the subspaces of two versions."""
    if before.manifest.content.basis == here.manifest.content.basis:
        return 0.0
    angle = step_change(before.model, here.model).mean_angle
    return None if angle is None else math.degrees(angle)


def _version(root: Path, here: Checkout, seen: set[str], turn: float | None) -> VersionFacts:
    version, files = here.version, here.manifest.content.files
    own = (root / version.ref.file).stat().st_size
    tasks = here.manifest.content.tasks
    return VersionFacts(
        number=version.number,
        created=version.created,
        operation=version.operation,
        bounds={t.name: t.summary.bound for t in tasks},
        bytes=own + sum(ref.bytes for ref in files.values()),
        new_bytes=own + sum(ref.bytes for name, ref in files.items() if name not in seen),
        adapters=sum(t.summary.adapter_bytes for t in tasks),
        turn=turn,
    )


def _parts(root: Path, opened: Checkout, versions: Sequence[VersionFacts], how: Storing) -> Parts:
    content = opened.manifest.content
    tasks = {t.coefficients.file: t for t in content.tasks}.values()
    coefficients = sum(t.summary.coefficient_bytes for t in tasks)
    kept = {t.kept.file: t.kept.bytes for t in content.tasks if t.kept}
    return Parts(
        basis=content.basis.bytes,
        coefficients=coefficients,
        kept=sum(kept.values()),
        ledgers=sum(t.coefficients.bytes for t in tasks) - coefficients,
        manifest=(root / opened.version.ref.file).stat().st_size,
        history=sum(v.new_bytes for v in versions) - versions[-1].bytes,
        adapters=sum(t.summary.adapter_bytes for t in content.tasks),
        private=sum(how.tasks[t.name].private.nbytes for t in tasks),
    )
