"""Gathering again and again, until it is told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gather.workers import plain, put, start
from sharespace.errors import InboxError, OptionError, StoreError, StoreNotFoundError
from sharespace.files import lock
from sharespace.gather import Gathered, Gatherer, GatherSettings, open_inbox, watch
from sharespace.store import load


def test_it_merges_what_arrives_and_stops_when_told(store: Path, inbox: Path) -> None:
    stop, seen = threading.Event(), list[Gathered]()
    put(inbox, plain("a", 1))

    def observe(found: Gathered) -> None:
        seen.append(found)
        if len(seen) == 1:
            put(inbox, plain("b", 2))
        else:
            stop.set()

    total = watch(Gatherer(store, open_inbox(inbox)), stop, interval=0.01, observe=observe)
    assert [a.task for a in total.merged] == ["a", "b"]
    assert total.version == 3
    assert set(load(store).tasks) == {"first", "a", "b"}


def test_a_batch_that_was_begun_is_brought_to_its_end(store: Path, inbox: Path) -> None:
    for i in range(4):
        put(inbox, plain(f"t{i}", i))
    stop = threading.Event()
    gatherer = Gatherer(store, open_inbox(inbox), GatherSettings(batch=2))
    total = watch(gatherer, stop, observe=lambda _: stop.set())
    assert len(total.merged) == 2
    assert len([p for p in inbox.iterdir() if p.is_file()]) == 2
    assert len(list((inbox / "merged").iterdir())) == 2


def test_a_store_that_is_locked_is_tried_again(store: Path, inbox: Path) -> None:
    put(inbox, plain("a", 1))
    stop, errors = threading.Event(), list[StoreError | InboxError]()
    gatherer = Gatherer(store, open_inbox(inbox), GatherSettings(timeout=0))
    held = lock(store / "lock")
    held.__enter__()

    def failed(error: StoreError | InboxError) -> None:
        errors.append(error)
        held.__exit__(None, None, None)

    total = watch(gatherer, stop, interval=0.01, observe=lambda _: stop.set(), failed=failed)
    assert len(errors) == 1
    assert "lock" in str(errors[0])
    assert [a.task for a in total.merged] == ["a"]


def test_what_can_never_work_is_said_at_once(store: Path, inbox: Path) -> None:
    stop = threading.Event()
    with pytest.raises(StoreNotFoundError):
        watch(Gatherer(inbox / "nothing", open_inbox(inbox)), stop)
    with pytest.raises(OptionError, match="interval"):
        watch(Gatherer(store, open_inbox(inbox)), stop, interval=0)
    with pytest.raises(OptionError, match="on_conflict"):
        GatherSettings(on_conflict="x")  # type: ignore[arg-type]


def test_the_command_stops_gracefully(tmp_path: Path) -> None:
    """On either signal; both processes start at once, because that is what takes the time."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    stores = [tmp_path / number.name for number in numbers]
    processes = []
    for store in stores:
        start(store)
        put(tmp_path / f"{store.name}-inbox", plain("a", 1))
        command = [sys.executable, "-m", "sharespace", "gather", str(store), f"{store}-inbox"]
        process = subprocess.Popen(
            [*command, "--watch", "--interval", "600"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        processes.append(process)
    for process in processes:
        assert process.stdout
        assert "Version 2: merged 1 task (a)" in process.stdout.readline()
    for number, store, process in zip(numbers, stores, processes, strict=True):
        begun = time.monotonic()
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert time.monotonic() - begun < 60
        assert not output
        assert set(load(store).tasks) == {"first", "a"}
