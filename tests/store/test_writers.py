"""Who may write: locks, conflicts, foreign directories, and a disk that refuses."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharespace.errors import (
    StoreConflictError,
    StoreError,
    StoreExistsError,
    StoreLockedError,
    StoreNotFoundError,
)
from sharespace.files import lock
from sharespace.store import (
    Operation,
    Version,
    checkout,
    commit,
    history,
    load,
    prune,
    rollback,
    verify,
)
from store.models import assert_same, model, task
from store.steps import CHANGING, Hook, hooked

INIT = Operation("init")


def init(path: Path) -> Version:
    return commit(path, model(), operation=INIT, expected_parent=None)


def snapshot(path: Path) -> dict[Path, bytes | None]:
    return {f: f.read_bytes() if f.is_file() else None for f in path.rglob("*")}


def test_a_second_commit_from_the_same_parent_is_a_conflict(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = init(path)
    commit(path, model(("a",)), operation=Operation("remove"), expected_parent=first)
    before = snapshot(path)
    with pytest.raises(StoreConflictError, match="version 2 was committed after version 1"):
        commit(path, model(("b",)), operation=Operation("remove"), expected_parent=first)
    assert snapshot(path) == before


def test_a_store_made_anew_is_not_the_parent(tmp_path: Path) -> None:
    path, other = tmp_path / "s", tmp_path / "other"
    stranger = commit(other, model(("x",)), operation=INIT, expected_parent=None)
    init(path)
    with pytest.raises(StoreConflictError):
        commit(path, model(), operation=INIT, expected_parent=stranger)


WRITERS: dict[str, Callable[[Path, Version], object]] = {
    "commit": lambda path, v: commit(path, model(), operation=INIT, expected_parent=v),
    "rollback": lambda path, _: rollback(path, 1),
    "prune": lambda path, _: prune(path, keep=1),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_locked_store_says_by_whom(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "s"
    version = init(path)
    with lock(path / "lock"), pytest.raises(StoreLockedError, match=f"{os.getpid()} on"):
        WRITERS[writer](path, version)
    assert_same(load(path), model())
    WRITERS[writer](path, version)


def test_an_unsigned_lock(tmp_path: Path) -> None:
    path = tmp_path / "s"
    version = init(path)
    with (path / "lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreLockedError, match="unknown"):
            WRITERS["commit"](path, version)


def test_a_timeout_waits_for_the_other_writer(tmp_path: Path) -> None:
    path = tmp_path / "s"
    version = init(path)
    held = threading.Event()

    def hold() -> None:
        with lock(path / "lock"):
            held.set()
            time.sleep(0.2)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    commit(path, model(("a",)), operation=INIT, expected_parent=version, timeout=20)
    thread.join()
    assert history(path)[-1].number == 2


def add_tasks(path: Path, names: list[str]) -> None:
    """A stubborn writer: adds its tasks one by one, whoever else writes."""
    for name in names:
        while True:
            opened = checkout(path)
            new = opened.model.with_tasks([*opened.model.tasks.values(), task(name)])
            operation = Operation("add", (name,))
            try:
                commit(path, new, operation=operation, expected_parent=opened.version)
            except (StoreLockedError, StoreConflictError):
                continue
            break


def test_two_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    init(path)
    names = [[f"{who}{i}" for i in range(4)] for who in "xy"]
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    workers = [context.Process(target=add_tasks, args=(path, n)) for n in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert set(load(path).tasks) == {"a", "b", *names[0], *names[1]}
    assert len(history(path)) == 9
    assert verify(path, all_versions=True).ok


def test_an_existing_store_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "s"
    init(path)
    before = snapshot(path)
    with pytest.raises(StoreExistsError, match="a Share model already"):
        init(path)
    assert snapshot(path) == before


FOREIGN = ("notes.txt", "objects/notes.txt", "versions/x.json", ".git/config", "objects/a/b")


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(StoreExistsError, match="not empty"):
        init(tmp_path)
    assert snapshot(tmp_path) == before


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("mine")
    with pytest.raises(StoreExistsError, match="there is a file"):
        init(tmp_path / "s")
    with pytest.raises(StoreError):
        init(tmp_path / "s" / "below")
    assert (tmp_path / "s").read_text() == "mine"


def test_a_store_that_lost_its_head_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = init(path)
    commit(path, model(("a",)), operation=INIT, expected_parent=first)
    (path / "share.json").unlink()
    with pytest.raises(StoreExistsError, match=r"lost its share\.json"):
        init(path)
    assert rollback(path, 2).number == 3
    assert list(load(path).tasks) == ["a"]


def test_parents_are_made_and_an_empty_directory_is_fine(tmp_path: Path) -> None:
    init(tmp_path / "new" / "er" / "s")
    (tmp_path / "empty").mkdir()
    init(tmp_path / "empty")


@pytest.mark.parametrize("action", [history, checkout, verify, lambda p: prune(p, keep=1)])
def test_no_store(tmp_path: Path, action: Callable[[Path], Any]) -> None:
    with pytest.raises(StoreNotFoundError, match="no Share model"):
        action(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_parent_without_a_store(tmp_path: Path) -> None:
    version = init(tmp_path / "s")
    with pytest.raises(StoreNotFoundError):
        commit(tmp_path / "t", model(), operation=INIT, expected_parent=version)
    with pytest.raises(StoreNotFoundError):
        rollback(tmp_path / "t", 1)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("linked", ["objects", "versions"])
def test_nothing_is_written_through_a_link(tmp_path: Path, linked: str) -> None:
    path = tmp_path / "s"
    version = init(path)
    (path / linked).rename(tmp_path / "elsewhere")
    (path / linked).symlink_to(tmp_path / "elsewhere")
    assert_same(load(path), model())
    before = snapshot(tmp_path)
    for writer in WRITERS.values():
        with pytest.raises(StoreError, match="symbolic link"):
            writer(path, version)
    assert snapshot(tmp_path) == before


REFUSED = [(name, errno.ENOSPC, "Free some space") for name in CHANGING if name != "close"]


@pytest.mark.parametrize(
    ("failing", "number", "remedy"), [*REFUSED, ("open", errno.EACCES, "permissions")]
)
def test_a_disk_that_refuses(tmp_path: Path, failing: str, number: int, remedy: str) -> None:
    """Whatever call fails, and at whichever time, the committed version stays."""
    for nth in range(100):
        path = tmp_path / str(nth)
        version = init(path)
        with hooked(refuse_once(failing, nth, number)):
            try:
                commit(path, model(("c",)), operation=INIT, expected_parent=version)
            except StoreError as error:
                message = str(error)
            else:
                break
        found = load(path)
        assert_same(found, model(("c",)) if len(found.tasks) == 1 else model())
        # Once HEAD is renamed, nobody must be told to repeat what has been done.
        committed = len(found.tasks) == 1
        assert ("Do not repeat the change" if committed else remedy) in message
        assert ("version 2 is current" in message) == committed
        assert verify(path, all_versions=True).ok
    assert nth > 0 or failing in ("mkdir", "unlink", "pwrite", "ftruncate")


@pytest.mark.parametrize("failing", ["pwrite", "ftruncate", "write"])
def test_a_full_disk_is_pruned(tmp_path: Path, failing: str) -> None:
    """Nothing that prune needs has to be written, so it can free the space."""
    version = init(tmp_path)
    commit(tmp_path, model(("c",)), operation=INIT, expected_parent=version)
    (tmp_path / "lock").unlink()
    with hooked(refuse_always(failing, errno.ENOSPC)):
        assert prune(tmp_path, keep=1).versions == (1,)
    assert verify(tmp_path, all_versions=True).ok


def refuse_always(failing: str, number: int) -> Hook:
    def hook(name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if name == failing:
            raise OSError(number, os.strerror(number))
        return function(*args)

    return hook


def refuse_once(failing: str, nth: int, number: int) -> Hook:
    """Lets all calls pass but one."""
    calls = itertools.count()

    def hook(name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if name == failing and next(calls) == nth:
            raise OSError(number, os.strerror(number))
        return function(*args)

    return hook


def test_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    version = init(path)

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path / "lock"))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        WRITERS["commit"](path, version)


def test_a_model_that_changes_while_it_is_written(tmp_path: Path) -> None:
    class Fickle(dict[str, Any]):
        """Gives another value every time, as a file that is being overwritten does."""

        reads = 0

        def __getitem__(self, name: str) -> Any:
            self.reads += 1
            return super().__getitem__(name) + self.reads

    wrong = task("t", kept=Fickle(x=task("t").kept["steps"]))
    with pytest.raises(StoreError, match="changed meanwhile"):
        commit(tmp_path / "s", model(tasks={"t": wrong}), operation=INIT, expected_parent=None)
    init(tmp_path / "s")  # what was left is no obstacle
    assert json.loads((tmp_path / "s" / "share.json").read_text())["schema_version"] == 1
