"""Merge what lies in an inbox, each contribution exactly once.

A version records the ids of all contributions that it holds, in the commit that brings them in. So
a gatherer that is killed after the commit finds them known, and only tidies; and of two gatherers
with the same file one commits, while the other meets a conflict, opens the new version and finds it
known. A bad contribution is set aside with the reason beside it, and stops nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from threading import Event

import torch

from sharespace.errors import (
    ContributionError,
    InboxError,
    MismatchError,
    OptionError,
    SharespaceError,
    StoreConflictError,
    StoreError,
    StoreNotFoundError,
)
from sharespace.gather.batch import (
    AcceptedContribution,
    BasisHistory,
    OnConflict,
    PendingContribution,
    SortedBatch,
    merge_batch,
    refuse_unwritable,
    sort_out,
)
from sharespace.gather.codec import decode
from sharespace.gather.contribution import NAME, Contribution
from sharespace.gather.inboxes import (
    MAX_BYTES,
    MERGED,
    QUARANTINE,
    SUFFIX,
    Inbox,
    InboxFile,
    open_inbox,
    refuse_store,
)
from sharespace.options import check_options, option
from sharespace.store import Operation, Version, checkout, commit
from sharespace.subspace.fidelity import TaskLoss, losses
from sharespace.words import visible

_ATTEMPTS = 100
"""Conflicts in a row after which another writer must be at fault: each conflict means that somebody
else committed, so that many gatherers alone do not come to this number."""


def gather(
    store: str | os.PathLike[str],
    inbox: str | os.PathLike[str],
    *,
    batch: int = 32,
    on_conflict: OnConflict = "refuse",
    timeout: float = 60.0,
    device: torch.device | str = "cpu",
    max_error: float | None = None,
    new_modules: bool = False,
    observe: Callable[[Gathered], None] | None = None,
) -> Gathered:
    """Merge what lies in an inbox into a Share model, in batches, each contribution once.

    Below the cap the result does not depend on the order, but for rounding. Merged files are moved
    to ``merged/`` in the inbox, bad ones to ``quarantine/`` with a reason beside them.

    Args:
        store: of the Share model; several gatherers may work on one.
        inbox: a folder, or a URL such as ``s3://bucket/inbox``.
        batch: contributions that one version takes in at most.
        on_conflict: "refuse", "rename" (to ``<task>-<first 8 digits of the id>``) or "replace"
            where a task's name is taken by other content.
        timeout: seconds to wait for another writer.
        device: where to compute.
        max_error: what would leave a task, old or new, with a larger bound on its relative error is
            set aside; None: nothing is for that.
        new_modules: take plain factors of modules that the Share model does not have.
        observe: called after each batch with what came of it.

    Returns:
        What came of all batches together.

    Raises:
        OptionError: no such inbox, or an option has no usable value.
        InboxError: the inbox cannot be read or written.
        StoreError: the store cannot be read or written; nothing is lost.
    """
    settings = GatherSettings(batch, on_conflict, timeout, device, max_error, new_modules)
    return Gatherer(Path(store), open_inbox(inbox), settings).run(observe)


def watch(
    gatherer: Gatherer,
    stop: Event,
    *,
    interval: float = 10.0,
    observe: Callable[[Gathered], None] | None = None,
    failed: Callable[[StoreError | InboxError], None] | None = None,
) -> Gathered:
    """Gather whatever arrives, until told to stop.

    A batch that was begun is brought to its end: merged, committed and tidied away.

    Args:
        gatherer: for one inbox and one store.
        stop: set by whoever wants it to end, such as a signal handler.
        interval: seconds between two looks at the inbox.
        observe: called after each batch.
        failed: called where the store or the inbox did not answer (locked, no connection, disk
            full); it is tried again after the interval.

    Returns:
        What came of all batches together.

    Raises:
        OptionError: the interval is not positive.
        StoreNotFoundError: there is no Share model.
        InboxError: the inbox cannot be listed at the start.
    """
    if not interval > 0:
        raise OptionError(f"interval {interval}", "it must be positive", "Change it")
    total = Gathered(checkout(gatherer.store).version.number)
    # Listed once before the loop: a mistyped inbox ends here, an inbox that fails later is waited
    # for.
    gatherer.inbox.entries()

    def add(gathered: Gathered) -> None:
        nonlocal total
        total += gathered
        if observe:
            observe(gathered)

    while not stop.is_set():
        try:
            gatherer.run(add, stop.is_set)
        except StoreNotFoundError:
            raise
        except (StoreError, InboxError) as error:
            if failed:
                failed(error)
        stop.wait(interval)
    return total


@dataclass(frozen=True)
class GatherSettings:
    """How to gather. Raises OptionError where a value is out of its limits."""

    batch: int = option(32, least=1)
    """Contributions that one version takes in at most."""
    on_conflict: OnConflict = option("refuse")
    """What happens where a task's name is taken by other content."""
    timeout: float = option(60.0, least=0)
    """Seconds to wait for another writer; 0: do not wait."""
    device: torch.device | str = "cpu"
    """Where to compute."""
    max_error: float | None = option(None, least=0, most=1)
    """Largest bound on a task's relative error that a merge may lead to; what would lead to a
    larger one, of an old or a new task, is set aside."""
    new_modules: bool = option(False)
    """Take plain factors of modules that the Share model does not have; they are refused else, as
    they are most likely of another base model, and then nothing could be served."""

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Gathered:
    """What came of one batch, or of all of them."""

    version: int
    """Number of the version that is current afterwards."""
    merged: tuple[MergedContribution, ...] = ()
    refused: tuple[Refusal, ...] = ()
    repeated: tuple[str, ...] = ()
    """Ids that the Share model had already; their files are tidied away."""
    losses: tuple[TaskLoss, ...] = ()
    """Tasks, old and new, of which a merge took so much that they may not work any more."""

    def __add__(self, later: Gathered) -> Gathered:
        return Gathered(
            later.version,
            self.merged + later.merged,
            self.refused + later.refused,
            self.repeated + later.repeated,
            self.losses + later.losses,
        )


@dataclass(frozen=True)
class MergedContribution:
    """A contribution that was merged."""

    task: str
    """Its name in the Share model."""
    id: str
    """SHA-256 (hex) of its file."""


@dataclass(frozen=True)
class Refusal:
    """A contribution that was set aside."""

    file: str
    """Name within ``quarantine/``; the reason is in ``<file>.json``."""
    task: str | None
    """Its task; None where it could not be read."""
    error: str
    """Name of the error's class."""
    what: str
    why: str
    remedy: str


@dataclass(eq=False)
class Gatherer:
    """Gathers from one inbox into one store, and remembers the bases it has looked up.

    Args:
        store: folder of the Share model.
        inbox: where contributions lie: of ``open_inbox``, or any other ``Inbox``.
        settings: how to gather.

    Raises:
        OptionError: the inbox is a Share model itself.
    """

    store: Path
    inbox: Inbox
    settings: GatherSettings = field(default_factory=GatherSettings)

    def __post_init__(self) -> None:
        self.store = self.store.absolute()
        refuse_store(self.inbox, self.store)
        self._bases = BasisHistory(self.store)
        self._failures: list[InboxError] = []

    def run(
        self,
        observe: Callable[[Gathered], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Gathered:
        """Batch after batch until the inbox holds nothing that was not looked at.

        Args:
            observe: called after each batch.
            stop: asked before each batch; True ends it.

        Raises:
            InboxError: the inbox cannot be read or written.
            StoreError: the store cannot be read or written; nothing is lost.
        """
        total = Gathered(checkout(self.store).version.number)
        self._failures.clear()
        # Names that were looked at stay out, though their files should be gone: an inbox whose
        # moves fail silently must not make an endless loop.
        finished: set[str] = set()
        while not (stop and stop()):
            entries = [e for e in self.inbox.entries() if e.name not in finished]
            if not entries:
                break
            gathered, names = self._batch(entries[: self.settings.batch])
            finished |= names
            total += gathered
            if observe:
                observe(gathered)
        if self._failures:
            # Told at the end: a file that cannot be read or moved must not keep the others out.
            raise self._failures[0]
        return total

    def _batch(self, entries: Sequence[InboxFile]) -> tuple[Gathered, set[str]]:
        """One batch, and the files that need not be looked at again."""
        pending, refused = self._read(entries)
        unwritable: list[tuple[PendingContribution, SharespaceError]] = []
        for _ in range(_ATTEMPTS):
            # Opened after the inbox was listed: as new as anything that lies there.
            opened = checkout(self.store)
            settings = self.settings
            batch = sort_out(
                pending, opened, self._bases, settings.on_conflict, settings.new_modules
            )
            model, accepted = merge_batch(opened.model, batch, settings.device, settings.max_error)
            version = opened.version
            try:
                if accepted:
                    version = commit(
                        self.store,
                        model,
                        operation=Operation("gather", tuple(a.adapter.name for a in accepted)),
                        expected_parent=version,
                        timeout=self.settings.timeout,
                        contributions=tuple(a.pending.id for a in accepted),
                    )
            except StoreConflictError:
                # Gatherers that collided once would go on in step without a random pause.
                time.sleep(random.uniform(0, 0.05))
                continue
            except (StoreError, MismatchError):
                blamed = refuse_unwritable(opened.model, accepted, settings.device)
                if not blamed:
                    raise  # The disk or the store is at fault.
                unwritable += blamed
                ids = {one.id for one, _ in blamed}
                pending = [one for one in pending if one.id not in ids]
                continue
            batch.refused += unwritable
            lost = tuple(losses(opened.model, model)) if accepted else ()
            gathered = self._tidy(batch, accepted, version, refused, lost)
            return gathered, {e.name for e in entries} - {p.file for p in batch.later}
        why = f"other writers committed {_ATTEMPTS} times while a batch was merged"
        raise StoreConflictError(str(self.store), why, "Gather in smaller batches")

    def _read(
        self, entries: Sequence[InboxFile]
    ) -> tuple[list[PendingContribution], list[Refusal]]:
        """The contributions that can be read; the others are set aside."""
        pending: dict[str, PendingContribution] = {}
        refused: list[Refusal] = []
        for entry in entries:
            data: bytes | None = None
            try:
                if entry.size > MAX_BYTES:
                    why = f"{entry.size} bytes, more than the {MAX_BYTES} it may have"
                    raise ContributionError(entry.name, why, "Leave out what is not trained")
                data = self.inbox.read(entry.name)
                if data is None:
                    continue
                id = hashlib.sha256(data).hexdigest()
                one = PendingContribution(entry.name, id, _decoded(data, entry.name), data)
            except ContributionError as error:
                refused.append(self._set_aside(entry.name, error, None, data))
                continue
            except InboxError as error:
                # Raises where the place itself does not answer any more: no other can be read then.
                self.inbox.entries()
                self._failures.append(error)
                continue
            if id in pending:  # The same bytes lie there under two names.
                self._move(entry.name, f"{MERGED}/contribution-{id}.safetensors")
            else:
                pending[id] = one
        return list(pending.values()), refused

    def _tidy(
        self,
        batch: SortedBatch,
        accepted: Sequence[AcceptedContribution],
        version: Version,
        unreadable: Sequence[Refusal],
        lost: tuple[TaskLoss, ...],
    ) -> Gathered:
        """Move the files where they belong.

        Always after the commit: a file that is moved first and then not committed would be lost,
        while one that is committed and not moved is found to be known and moved the next time.
        """
        for one in [*(a.pending for a in accepted), *batch.repeated]:
            self._move(one.file, f"{MERGED}/contribution-{one.id}.safetensors")
        refused = [
            self._set_aside(one.file, error, one.contribution.task, one.data)
            for one, error in batch.refused
        ]
        return Gathered(
            version.number,
            tuple(MergedContribution(a.adapter.name, a.pending.id) for a in accepted),
            (*unreadable, *refused),
            tuple(one.id for one in batch.repeated),
            lost,
        )

    def _move(self, name: str, to: str) -> None:
        try:
            self.inbox.move(name, to)
        except InboxError as error:
            self._failures.append(error)

    def _set_aside(
        self, name: str, error: SharespaceError, task: str | None, data: bytes | None
    ) -> Refusal:
        """Write the reason, then move the file beside it.

        In this order: killed in between, the file is still in the inbox and will be looked at
        again. To try once more after a remedy, move it back from ``quarantine/`` into the inbox.

        Args:
            name: of the file.
            error: the reason.
            task: of the contribution; None: not known.
            data: the file's bytes; None: they were not read.
        """
        file = _quarantine_name(name, data)
        # Names out of the file may hold line breaks; a reason is one line.
        reason = (visible(text) for text in (error.what, error.why, error.remedy))
        refusal = Refusal(file, task, type(error).__name__, *reason)
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        record = {**asdict(refusal), "submitted_as": name, "time": now}
        # In ASCII: names from outside may hold what a terminal or an editor would act upon.
        text = json.dumps(record, indent=1, sort_keys=True) + "\n"
        try:
            self.inbox.write(f"{QUARANTINE}/{file}.json", text.encode("ascii"))
        except InboxError as failed:
            self._failures.append(failed)
            return refusal
        self._move(name, f"{QUARANTINE}/{file}")
        return refusal


def _decoded(data: bytes, name: str) -> Contribution:
    """What a file holds; whatever is wrong with it is the contribution's error.

    Raises:
        ContributionError: it holds no contribution that can be merged.
    """
    try:
        return decode(data, name)
    except ContributionError:
        raise
    # Nothing but these bytes is read here, so that nothing else can be at fault.
    except Exception as error:
        why = f"it cannot be read ({type(error).__name__}: {str(error)[:200]})"
        raise ContributionError(name, why, "`sharespace submit` makes contributions") from error


def _quarantine_name(name: str, data: bytes | None) -> str:
    """The file's own name, made unique by its bytes where the name does not say them already."""
    if data is None:
        # What could not be read has no bytes to be told by; another one of this name may come.
        return f"{name.removesuffix(SUFFIX)[:150]}.{uuid.uuid4().hex[:12]}{SUFFIX}"
    digest = hashlib.sha256(data).hexdigest()
    match = NAME.fullmatch(name)
    if match and match["sha256"] == digest:
        return name
    # Two damaged files may have one name, one after the other. Cut, because file systems take 255
    # bytes and ".json" is still to come.
    return f"{name.removesuffix(SUFFIX)[:150]}.{digest[:12]}{SUFFIX}"
