"""What was not synced is lost with the power; the committed version is not."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharespace import files
from sharespace.errors import StoreNotFoundError
from sharespace.store import (
    Operation,
    checkout,
    commit,
    load,
    prune,
    rollback,
    verify,
)
from sharespace.store.schema import HEAD
from sharespace.subspace.state import ShareModel
from store.disk import Disk
from store.models import assert_same, model
from store.steps import Log, hooked

OLD, NEW = model(("a",)), model(("a", "b"))


def init(path: Path) -> object:
    return commit(path, OLD, operation=Operation("init"), expected_parent=None)


def add(path: Path) -> object:
    parent = checkout(path).version
    return commit(path, NEW, operation=Operation("add"), expected_parent=parent)


def recorded(action: Callable[[Path], object], path: Path) -> list[tuple[Any, ...]]:
    log = Log()
    with hooked(log):
        action(path)
    return log.steps


def found_after(disk: Disk, path: Path, target: Path) -> list[ShareModel | None]:
    """The current models of all that a power loss may leave now."""
    found: list[ShareModel | None] = []
    for n, left_over in enumerate(disk.after_power_loss()):
        place = target / str(n)
        for file, data in sorted(left_over.items()):
            copy = place / file.relative_to(path)
            if data is None:
                copy.mkdir(parents=True, exist_ok=True)
            elif copy.parent.is_dir():
                copy.write_bytes(data)
        try:
            found.append(load(place))
        except StoreNotFoundError:
            found.append(None)
            continue
        assert verify(place, all_versions=True).ok
    return found


CASES: dict[str, tuple[list[Callable[[Path], object]], ShareModel | None, ShareModel]] = {
    "init": ([init], None, OLD),
    "add": ([init, add], OLD, NEW),
    "rollback": ([init, add, lambda path: rollback(path, 1)], NEW, OLD),
    "prune": ([init, add, lambda path: prune(path, keep=1)], NEW, NEW),
}


@pytest.mark.parametrize("case", CASES)
def test_power_lost_after_every_step(tmp_path: Path, case: str) -> None:
    actions, before, after = CASES[case]
    path = tmp_path / "s"
    for action in actions[:-1]:
        action(path)
    disk, left = Disk(path), itertools.count()
    for step in recorded(actions[-1], path):
        disk.step(*step)
        if step[0] not in ("fsync", "replace", "unlink", "mkdir"):
            continue
        for found in found_after(disk, path, tmp_path / f"left {next(left)}"):
            if found is None:
                assert before is None
            elif before is None or len(found.tasks) == len(after.tasks):
                assert_same(found, after)
            else:
                assert_same(found, before)
    last = found_after(disk, path, tmp_path / "last")
    assert last
    assert all(found is not None and len(found.tasks) == len(after.tasks) for found in last)


def test_sync_rename_sync(tmp_path: Path) -> None:
    """File synced before its rename, its directory after it, and HEAD moved last of all."""
    path = tmp_path / "s"
    files: dict[int, Path] = {}
    synced: list[Path] = []
    renamed: list[Path] = []
    unsynced: set[Path] = set()  # directories with a rename that is not durable yet
    for name, *args in recorded(init, path):
        if name == "open":
            files[args[0]] = args[1]
        elif name == "fsync":
            synced.append(files[args[0]])
            unsynced.discard(files[args[0]])
        elif name == "replace":
            assert args[0] in synced
            assert unsynced <= {args[1].parent}
            unsynced.add(args[1].parent)
            renamed.append(args[1])
    assert [file.parent.name for file in renamed] == ["objects"] * 3 + ["versions", "s"]
    assert renamed[-1] == path / HEAD
    assert not unsynced


def test_macos_syncs_the_drive_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Darwin:
        F_FULLFSYNC = 51
        LOCK_EX, LOCK_NB, LOCK_UN = 2, 4, 8

        def fcntl(self, fd: int, command: int) -> None:
            asked.append(command)
            os.fsync(fd)

        def flock(self, fd: int, operation: int) -> None:
            pass

    monkeypatch.setattr(files, "fcntl", Darwin())
    init(tmp_path / "s")
    assert set(asked) == {51}
    assert len(asked) > 6
