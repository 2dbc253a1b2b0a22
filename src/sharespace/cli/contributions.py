"""``submit``, ``gather``, ``push`` and ``pull``: what they print, and how a watch is stopped."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

from sharespace.errors import SharespaceError
from sharespace.gather import (
    Gathered,
    Gatherer,
    GatherSettings,
    Refusal,
    Submission,
    open_inbox,
    watch,
)
from sharespace.store import Version
from sharespace.words import count, human


def submitted(found: Submission, as_json: bool) -> None:
    """What and where, or the record."""
    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return
    how = "plain factors" if found.version is None else f"in the bases of version {found.version}"
    print(f"{found.task}: {human(found.bytes)}, {how}")
    print(f"{found.inbox}/{found.file}")


def pushed(repository: str, url: str | None, as_json: bool) -> None:
    """Where the new versions are, or that there was none."""
    if as_json:
        print(json.dumps({"repository": repository, "url": url}, indent=2))
        return
    print(f"{repository}: {url or 'up to date'}")


def pulled(share: Path, version: Version | None, as_json: bool) -> None:
    """The version that is current now, or that there was nothing new."""
    if as_json:
        print(json.dumps({"version": version.number if version else None}, indent=2))
        return
    if version is None:
        print(f"{share}: up to date")
        return
    print(f"{share} version {version.number}: {count(version.task_count, 'task')}")


def gather(share: Path, inbox: str, options: GatherSettings, as_json: bool) -> None:
    """Once: a line per batch and per refusal, and a line for all."""
    gatherer = Gatherer(share, open_inbox(inbox), options)
    found = gatherer.run(None if as_json else _batch)
    if as_json:
        print(json.dumps(record(found), indent=2))
        return
    if not (found.merged or found.refused or found.repeated):
        print(f"version {found.version}: nothing to gather in {inbox}")


def follow(
    share: Path, inbox: str, options: GatherSettings, interval: float, as_json: bool
) -> None:
    """Until SIGINT or SIGTERM; the batch that was begun is brought to its end."""
    gatherer = Gatherer(share, open_inbox(inbox), options)
    with _stopped_by_signals() as stop:
        watch(
            gatherer,
            stop,
            interval=interval,
            observe=_json_line if as_json else _timed,
            failed=_failed,
        )


def record(found: Gathered) -> dict[str, Any]:
    """Plain JSON values; names here are an interface."""
    return {
        "version": found.version,
        "merged": {one.task: one.id for one in found.merged},
        "quarantined": [asdict(one) for one in found.refused],
        "repeated": list(found.repeated),
    }


def _line(found: Gathered) -> str:
    text = f"version {found.version}: merged {count(len(found.merged), 'task')}"
    if found.merged:
        text += f" ({_names(sorted(one.task for one in found.merged))})"
    if found.refused:
        text += f"; quarantined {len(found.refused)}"
    if found.repeated:
        text += f"; {len(found.repeated)} merged before"
    return text


def _names(tasks: list[str]) -> str:
    shown = ", ".join(tasks[:5])
    return shown if len(tasks) <= 5 else f"{shown} and {len(tasks) - 5} more"


def _refusal(one: Refusal) -> str:
    return f"quarantined {one.file[:26]}...: {one.what}: {one.why}. {one.remedy}"


def _batch(found: Gathered) -> None:
    print(_line(found), flush=True)
    for one in found.refused:
        print(_refusal(one), file=sys.stderr, flush=True)


def _timed(found: Gathered) -> None:
    print(f"{_now()} {_line(found)}", flush=True)
    for one in found.refused:
        print(f"{_now()} {_refusal(one)}", file=sys.stderr, flush=True)


def _json_line(found: Gathered) -> None:
    print(json.dumps({"time": _now(), **record(found)}), flush=True)


def _failed(error: SharespaceError) -> None:
    print(f"{_now()} not now: {error}", file=sys.stderr, flush=True)


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def _stopped_by_signals() -> Iterator[Event]:
    """An event that SIGINT and SIGTERM set; a second signal acts as it always does."""
    stop = Event()
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for one in before:
        signal.signal(one, handle)
    try:
        yield stop
    finally:
        for one, old in before.items():
            signal.signal(one, old)
