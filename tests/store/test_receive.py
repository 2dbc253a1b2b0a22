"""Versions of a copy come here as they are, forwards only, and survive a kill at any step."""

from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path

import pytest

from sharespace.errors import (
    CorruptStoreError,
    StoreConflictError,
    StoreError,
    StoreExistsError,
    StoreNotFoundError,
)
from sharespace.files import TEMPORARY
from sharespace.store import Operation, checkout, commit, history, load, prune, receive, verify
from store.models import assert_same, model, task
from store.steps import run_and_kill

FIRST, SECOND = model(("a",)), model(("a", "b"))
THIRD = FIRST.with_tasks([task("c", 77)])


def grow(path: Path, content: object) -> None:
    parent = checkout(path).version if path.exists() else None
    commit(path, content, operation=Operation("add"), expected_parent=parent)  # type: ignore[arg-type]


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A store of two versions."""
    path = tmp_path / "there"
    grow(path, FIRST)
    grow(path, SECOND)
    return path


def test_a_new_store_has_every_version(there: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    found = receive(here, there)
    assert found == checkout(there).version
    assert history(here) == history(there)
    assert_same(load(here), SECOND)
    assert_same(load(here, 1), FIRST)
    assert verify(here, all_versions=True).ok
    assert receive(here, there) is None


def test_a_copy_is_brought_forwards(there: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    receive(here, there)
    grow(there, THIRD)
    found = receive(here, there)
    assert found is not None
    assert found.number == 3
    assert_same(load(here), THIRD)
    assert verify(here, all_versions=True).ok


def test_what_is_ahead_stays(there: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    receive(here, there)
    grow(here, THIRD)
    assert receive(here, there) is None
    assert_same(load(here), THIRD)


def test_versions_that_do_not_follow_are_refused(there: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    receive(here, there)
    grow(here, THIRD)
    grow(there, FIRST)
    before = history(here)
    with pytest.raises(StoreConflictError, match="do not follow from each other"):
        receive(here, there)
    assert history(here) == before
    assert_same(load(here), THIRD)


def test_a_pruned_copy_is_a_whole_store(there: Path, tmp_path: Path) -> None:
    prune(there, keep=1)
    receive(tmp_path / "here", there)
    assert [v.number for v in history(tmp_path / "here")] == [2]
    assert verify(tmp_path / "here", all_versions=True).ok


def test_a_damaged_copy_changes_nothing(there: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    receive(here, there)
    grow(there, THIRD)
    for path in (there / "objects").iterdir():
        if not (here / "objects" / path.name).exists():
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged, or changed"):
        receive(here, there)
    assert_same(load(here), SECOND)
    assert verify(here, all_versions=True).ok
    for path in (there / "objects").iterdir():
        if not (here / "objects" / path.name).exists():
            path.unlink()
    with pytest.raises(CorruptStoreError, match="missing"):
        receive(here, there)
    assert_same(load(here), SECOND)


def test_something_else_is_at_the_path(there: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(StoreExistsError, match="not empty"):
        receive(tmp_path / "mine", there)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_nothing_is_at_the_source(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        receive(tmp_path / "here", tmp_path / "nowhere")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("new", [True, False], ids=["new", "forwards"])
def test_killed_at_every_step(there: Path, tmp_path: Path, new: bool) -> None:
    behind = tmp_path / "behind"
    if not new:
        receive(behind, there)
        grow(there, THIRD)
    for step in count(step=2):
        here = tmp_path / str(step)
        if not new:
            shutil.copytree(behind, here)
        completed = run_and_kill(lambda here=here: receive(here, there), step)  # type: ignore[misc]
        if not new:
            # At the last steps HEAD is new already; before, the old version is whole.
            assert len(history(here)) in (2, 3)
            assert verify(here, all_versions=True).ok
        receive(here, there)
        assert history(here) == history(there)
        assert verify(here, all_versions=True).ok
        assert not [f for f in here.rglob("*") if f.name.startswith(TEMPORARY)]
        shutil.rmtree(here)
        if completed:
            break
    assert step > 10, "the steps were not counted"
