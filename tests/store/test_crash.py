"""A writer killed at any step leaves the previous version whole, and the next writer works."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from sharespace.errors import StoreNotFoundError
from sharespace.files import TEMPORARY
from sharespace.store import Operation, checkout, commit, load, prune, remove, rollback, verify
from sharespace.subspace.state import ShareModel
from store.models import assert_same, model, task
from store.steps import run_and_kill


@dataclass(frozen=True)
class Case:
    """An action, and the models that may be current when it was killed."""

    name: str
    act: Callable[[Path], object]
    before: ShareModel | None
    after: ShareModel
    steps: int
    """That change the disk; each of them is killed once."""


def _init(path: Path) -> object:
    return commit(path, model(("a",)), operation=Operation("init"), expected_parent=None)


def _add(path: Path) -> object:
    opened = checkout(path)
    bigger = opened.model.with_tasks([*opened.model.tasks.values(), task("c", 77)])
    return commit(path, bigger, operation=Operation("add"), expected_parent=opened.version)


OLD, NEW, NEXT = model(("a",)), model(("a", "b")), model(("next",))
CASES = [
    Case("init", _init, None, OLD, 21),
    Case("add", _add, NEW, NEW.with_tasks([*NEW.tasks.values(), task("c", 77)]), 15),
    Case("rollback", lambda path: rollback(path, 1), NEW, OLD, 9),
    Case("remove", lambda path: remove(path, ["b"]), NEW, NEW.without_tasks("b"), 9),
    Case("prune", lambda path: prune(path, keep=1), NEW, NEW, 5),
]


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 has the task a, version 2 also b; another object belongs to neither."""
    path = tmp_path_factory.mktemp("base") / "s"
    first = commit(path, OLD, operation=Operation("init"), expected_parent=None)
    commit(path, NEW, operation=Operation("add"), expected_parent=first)
    (path / "objects" / f"task-{'0' * 64}.safetensors").write_bytes(b"of a crashed commit")
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_killed_at_every_step(tmp_path: Path, two_versions: Path, case: Case) -> None:
    for step in count():
        path = tmp_path / str(step)
        if case.before is not None:
            shutil.copytree(two_versions, path)
        completed = run_and_kill(lambda path=path: case.act(path), step)  # type: ignore[misc]
        check_current(path, case, completed)
        check_next_commit(path)
        if completed:
            break
        shutil.rmtree(path)
    assert step == case.steps, "the steps were not counted"


def check_current(path: Path, case: Case, completed: bool) -> None:
    try:
        found = load(path)
    except StoreNotFoundError:
        assert case.before is None
        assert not completed
        return
    assert verify(path, all_versions=True).ok
    if completed or case.before is None or len(found.tasks) == len(case.after.tasks):
        assert_same(found, case.after)
    else:
        assert_same(found, case.before)


def check_next_commit(path: Path) -> None:
    try:
        parent = checkout(path).version
    except StoreNotFoundError:
        parent = None
    commit(path, NEXT, operation=Operation("init"), expected_parent=parent)
    assert_same(load(path), NEXT)
    assert verify(path, all_versions=True).ok
    assert not [f for f in path.rglob("*") if f.name.startswith(TEMPORARY)]
