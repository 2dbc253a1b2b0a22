"""Everything that a report says, as plain values read from a store.

No markup, and nothing that changes by the hour, so that the same version gives the same page. The
scores of a stream come from the folder that ``sharespace run`` keeps beside its Share model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sharespace.errors import CorruptStoreError, OptionError
from sharespace.report.study import Relations, Study, relations, study
from sharespace.store import Checkout, Operation, checkout, history, known_starts
from sharespace.store.schema import Content
from sharespace.stream.folder import FORMAT, read_json
from sharespace.stream.measures import ScoreMatrix
from sharespace.stream.records import Step, content_digest
from sharespace.subspace.adapter import ModuleShape
from sharespace.subspace.fidelity import (
    ModelStorage,
    StorageKind,
    StorageTally,
    TaskFidelity,
    fidelity,
    tally_storage,
)
from sharespace.subspace.similarity import step_change
from sharespace.subspace.state import BuildSettings

MOST_COMPARED = 600
"""Tasks that are compared with each other, which takes time and cells by their square; of more
tasks, so many evenly spaced ones."""

MOST_BASIS_BYTES = 1 << 28
"""Bytes of bases that are read to compare versions; after that many, turns are left out."""


@dataclass(frozen=True)
class TaskFacts:
    """One task of the version."""

    name: str
    place: int
    """In the order in which the tasks came, from 1."""
    fidelity: TaskFidelity
    """Errors and bounds, from its ledger."""
    p: tuple[int, int]
    """Smallest and largest pseudo-rank of its layers."""
    stored: StorageTally
    """How its updates are stored."""
    storage_kinds: Mapping[str, StorageKind]
    """Module -> storage its update there is stored."""
    norm: float
    """|dW| over all layers when it came."""
    bytes: int
    """Size of its files in bytes."""
    adapter_bytes: int
    format: str
    source: str
    sha256: str | None
    started_from: Mapping[str, float] = field(default_factory=dict)
    """Known tasks that it started from, and their weights."""


@dataclass(frozen=True)
class LayerFacts:
    """One adapted module."""

    module: str
    shape: ModuleShape
    k: tuple[int, int]
    cap: tuple[int, int] | None
    stored: StorageTally = field(default_factory=StorageTally)
    """How the tasks' updates are stored."""
    basis: int = 0
    """Bytes of its bases."""
    streamed: bool = False
    """Adapters came into it out of core."""
    subspaces: int = 1
    """More than one where groups of tasks have their own."""

    @property
    def at_cap(self) -> bool:
        """The next merge truncates current: it is at a cap that is below the side's full size."""
        full = min(self.shape.out_features, self.shape.in_features)
        return self.cap is not None and any(
            0 < most <= k < full for k, most in zip(self.k, self.cap, strict=True)
        )


@dataclass(frozen=True)
class VersionFacts:
    """One version of the history."""

    number: int
    created: str
    operation: Operation
    bounds: Mapping[str, float]
    """Task -> bound on its relative error by then."""
    bytes: int
    """Size of the version's files, its manifest included."""
    new_bytes: int
    """Size of those that no earlier version has."""
    adapters: int
    """What its tasks' adapters took."""
    turn: float | None
    """Mean principal angle between its subspaces and those of the version before that is there, in
    degrees; None: it is the first, or nothing can be compared."""


@dataclass(frozen=True)
class FileBytes:
    """Bytes of the version's files; they add up to all that it needs."""

    basis: int
    coefficients: int
    kept: int
    """Heads, biases and the like, as they came."""
    ledgers: int
    """Ledgers, settings and headers of the tasks' files."""
    manifest: int
    history: int
    """Files that only earlier versions need; not in ``total``."""
    adapters: int
    """Tensors of the adapters that the tasks came from."""
    per_task: int = 0
    """Part of the coefficients: updates stored per task, outside of the subspaces."""

    @property
    def total(self) -> int:
        return self.basis + self.coefficients + self.kept + self.ledgers + self.manifest


@dataclass(frozen=True)
class StreamScores:
    """What a stream measured, where it is stored beside the Share model."""

    matrix: ScoreMatrix
    metrics: Mapping[str, str]
    """Task -> its metric's name, where the recipe states one."""
    notices: tuple[str, ...]
    """Why scores are missing."""


@dataclass(frozen=True, eq=False)
class Facts:
    """One version of a Share model."""

    name: str
    """Name of the store's directory."""
    version: int
    created: str
    base: str | None
    settings: BuildSettings
    dtype: str
    tasks: tuple[TaskFacts, ...]
    layers: tuple[LayerFacts, ...]
    file_bytes: FileBytes
    versions: tuple[VersionFacts, ...]
    """Those that are there, up to this one, oldest first."""
    study: Study
    relations: Relations
    scores: StreamScores | None = None
    contributions: int = 0
    """How many contributions of workers were gathered up to this version."""
    left_out: int = 0
    """Tasks that are not compared with the others because there are too many."""

    @property
    def stored(self) -> StorageTally:
        """How all updates are stored."""
        return sum((task.stored for task in self.tasks), StorageTally())

    @property
    def k(self) -> list[int]:
        """The larger side of every layer with a subspace."""
        return [max(layer.k) for layer in self.layers if max(layer.k)]


def read_facts(path: str | os.PathLike[str], version: int | None = None) -> Facts:
    """All that a report says about a version.

    Args:
        path: of the store.
        version: its number; None: the current one.

    Raises:
        StoreNotFoundError, CorruptStoreError, SchemaVersionError: see ``sharespace.errors``.
    """
    root = Path(path).absolute()
    opened = checkout(root, version)
    content = opened.manifest.content
    fidelities = fidelity(opened.model).tasks
    names = list(opened.model.tasks)
    storage = tally_storage(opened.model.tasks.values(), {e.module: e for e in content.layers})
    compared = evenly(names, MOST_COMPARED)
    compared_tasks = study(opened.model, compared)
    versions = _versions(root, opened)
    return Facts(
        name=root.name,
        version=opened.version.number,
        created=opened.version.created,
        base=content.base.id,
        settings=content.settings,
        dtype=str(content.dtype).removeprefix("torch."),
        tasks=tuple(_tasks(opened, fidelities, storage)),
        layers=tuple(_layers(opened, storage)),
        file_bytes=_file_bytes(root, opened, versions, storage),
        versions=versions,
        study=compared_tasks,
        relations=relations(compared_tasks.overlaps),
        scores=stored_scores(root, content),
        contributions=len(opened.manifest.contributions),
        left_out=len(names) - len(compared),
    )


def evenly(names: Sequence[str], most: int) -> list[str]:
    """At most so many of the names, evenly spaced, in order."""
    if len(names) <= most:
        return list(names)
    return [names[i * len(names) // most] for i in range(most)]


def _layers(opened: Checkout, storage: ModelStorage) -> Iterator[LayerFacts]:
    itemsize = opened.manifest.content.dtype.itemsize
    for entry in opened.manifest.content.layers:
        shape, (left, right) = entry.shape, entry.k
        numbers = left * shape.out_features + right * shape.in_features
        yield LayerFacts(
            entry.module,
            shape,
            entry.k,
            entry.cap,
            stored=storage.layers[entry.module],
            basis=numbers * itemsize,
            streamed=entry.streamed,
            subspaces=max(len(entry.groups), 1),
        )


def _tasks(
    opened: Checkout, fidelities: Mapping[str, TaskFidelity], storage: ModelStorage
) -> Iterator[TaskFacts]:
    starts = known_starts(opened)
    for place, entry in enumerate(opened.manifest.content.tasks, 1):
        task = opened.model.tasks[entry.name]
        ranks = [value.rank for value in task.coefficients.values()]
        files = entry.refs
        yield TaskFacts(
            name=entry.name,
            place=place,
            fidelity=fidelities[entry.name],
            p=(min(ranks, default=0), max(ranks, default=0)),
            stored=storage.tasks[entry.name],
            storage_kinds=storage.kinds[entry.name],
            norm=task.ledger.total_norm,
            bytes=sum(ref.bytes for ref in files),
            adapter_bytes=task.adapter_bytes,
            format=task.provenance.format,
            source=task.provenance.source,
            sha256=task.provenance.sha256,
            started_from=starts.get(entry.name, {}),
        )


def _versions(root: Path, opened: Checkout) -> tuple[VersionFacts, ...]:
    """The history up to the version that was opened."""
    versions: list[VersionFacts] = []
    seen_files: set[str] = set()
    before: Checkout | None = None
    remaining = MOST_BASIS_BYTES
    for version in history(root):
        if version.number > opened.version.number:
            break
        current = checkout(root, version.number)
        remaining -= _to_read(before, current)
        turn = _turn(before, current) if before and remaining >= 0 else None
        versions.append(_version(root, current, seen_files, turn))
        seen_files.update(current.manifest.content.files)
        before = current
    return tuple(versions)


def _to_read(before: Checkout | None, current: Checkout) -> int:
    """Bytes of bases that it takes to compare two versions."""
    if before is None or before.manifest.content.basis == current.manifest.content.basis:
        return 0
    return current.manifest.content.basis.bytes


def _turn(before: Checkout, current: Checkout) -> float | None:
    """Degrees between the subspaces of two versions."""
    if before.manifest.content.basis == current.manifest.content.basis:
        # The same file: nothing turned, and nothing needs to be read.
        return 0.0
    angle = step_change(before.model, current.model).mean_angle
    return None if angle is None else math.degrees(angle)


def _version(
    root: Path, current: Checkout, seen_files: set[str], turn: float | None
) -> VersionFacts:
    version, files = current.version, current.manifest.content.files
    own = (root / version.ref.file).stat().st_size
    tasks = current.manifest.content.tasks
    return VersionFacts(
        number=version.number,
        created=version.created,
        operation=version.operation,
        bounds={t.name: t.summary.bound for t in tasks},
        bytes=own + sum(ref.bytes for ref in files.values()),
        new_bytes=own + sum(ref.bytes for name, ref in files.items() if name not in seen_files),
        adapters=sum(t.summary.adapter_bytes for t in tasks),
        turn=turn,
    )


def _file_bytes(
    root: Path, opened: Checkout, versions: Sequence[VersionFacts], storage: ModelStorage
) -> FileBytes:
    content = opened.manifest.content
    # Files are named by their content: two tasks of equal coefficients share one, counted once.
    tasks = {t.coefficients.file: t for t in content.tasks}.values()
    coefficients = sum(t.summary.coefficient_bytes for t in tasks)
    kept_files = {
        ref.file: ref.bytes for t in content.tasks for ref in t.refs if ref != t.coefficients
    }
    if content.base_samples is not None:
        kept_files[content.base_samples.file] = content.base_samples.bytes
    return FileBytes(
        basis=content.basis.bytes,
        coefficients=coefficients,
        kept=sum(kept_files.values()),
        ledgers=sum(t.coefficients.bytes for t in tasks) - coefficients,
        manifest=(root / opened.version.ref.file).stat().st_size,
        history=sum(v.new_bytes for v in versions) - versions[-1].bytes,
        adapters=sum(t.summary.adapter_bytes for t in content.tasks),
        per_task=sum(storage.tasks[t.name].per_task.nbytes for t in tasks),
    )


def stored_scores(share: Path, content: Content) -> StreamScores | None:
    """The scores of the steps that led to a version.

    Args:
        share: the store.
        content: of the version.

    Returns:
        None where no stream made this version (a version that was changed by hand since, too), or
        where it has no task with data.

    Raises:
        CorruptStoreError: a record is damaged.
    """
    folder = share.with_name(f"{share.name}.run")
    if not (folder / "stream.json").is_file():
        return None
    steps = _steps(folder / "steps", content_digest(content))
    recipe = read_json(folder / "stream.json")
    columns = _columns(recipe, folder, {task for step in steps for task in step.scores})
    if not columns:
        return None
    notices = dict.fromkeys(text for step in steps for text in step.notices)
    return StreamScores(_matrix(steps, list(columns), folder), columns, tuple(notices))


def _steps(folder: Path, content: str) -> Sequence[Step]:
    """The chain of records that ends with this content; none where no chain does."""
    chain: list[Step] = []
    for step in _records(folder):
        if step.parent != (chain[-1].content if chain else None):
            return ()
        chain.append(step)
        if step.content == content:
            return chain
    return ()


def _records(folder: Path) -> Iterator[Step]:
    numbered = [path for path in folder.glob("*.json") if path.stem.isdecimal()]
    for path in sorted(numbered, key=lambda p: int(p.stem)):
        yield Step.from_record(read_json(path), str(path))


def _columns(recipe: Any, folder: Path, scored: set[str]) -> Mapping[str, str]:
    """Scored task -> its metric as the recipe states it, in the order of the recipe."""
    try:
        if recipe["format"] != FORMAT:
            raise KeyError(recipe["format"])
        stated = {str(t["name"]): t.get("metric") or "" for t in recipe["tasks"]}
    except (TypeError, KeyError, AttributeError) as error:
        why = f"no record of a stream ({error})"
        raise CorruptStoreError(
            str(folder / "stream.json"), why, "Bring the file back as it was"
        ) from error
    return {name: metric for name, metric in stated.items() if name in scored}


def _matrix(steps: Sequence[Step], tasks: Sequence[str], folder: Path) -> ScoreMatrix:
    learned = {task: at for at, step in enumerate(steps) for task in step.tasks}
    try:
        return ScoreMatrix(
            tasks=tuple(tasks),
            steps=tuple(step.name for step in steps),
            scores=tuple(tuple(step.scores.get(t) for t in tasks) for step in steps),
            learned=tuple(learned.get(t) for t in tasks),
        )
    except (OptionError, TypeError) as error:
        raise CorruptStoreError(
            str(folder), f"its records do not fit together: {error}", "Bring them back as they were"
        ) from error
