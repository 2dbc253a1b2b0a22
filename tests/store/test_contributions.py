"""What was gathered is recorded in every version that follows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sharespace.errors import CorruptStoreError, StoreConflictError, StoreError
from sharespace.store import Operation, checkout, commit, prune, remove, rename, rollback
from store.models import model
from store.reseal import reseal

FIRST, SECOND = "1" * 64, "2" * 64
INIT = Operation("init")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Version 2 has one contribution more than version 1."""
    path = tmp_path / "s"
    first = commit(path, model(("a",)), operation=INIT, expected_parent=None)
    gather = Operation("gather", ("b",))
    commit(path, model(), operation=gather, expected_parent=first, contributions=(FIRST,))
    return path


def known(path: Path) -> tuple[str, ...]:
    return checkout(path).manifest.contributions


def test_a_store_that_gathers_nothing_has_no_such_field(tmp_path: Path) -> None:
    commit(tmp_path / "s", model(), operation=INIT, expected_parent=None)
    (manifest,) = (tmp_path / "s" / "versions").iterdir()
    assert "contributions" not in json.loads(manifest.read_bytes())
    assert known(tmp_path / "s") == ()


def test_they_stay_when_tasks_change(path: Path) -> None:
    rename(path, "b", "c")
    remove(path, ["c"])
    opened = checkout(path)
    commit(
        path,
        opened.model,
        operation=Operation("gather"),
        expected_parent=opened.version,
        contributions=(SECOND,),
    )
    prune(path, keep=1)
    assert known(path) == (FIRST, SECOND)


def test_a_rollback_goes_back_to_those_of_its_version(path: Path) -> None:
    rollback(path, 1)
    assert known(path) == ()
    rollback(path, 2)
    assert known(path) == (FIRST,)


def test_none_comes_in_twice(path: Path) -> None:
    opened = checkout(path)
    with pytest.raises(StoreConflictError, match="gathered before"):
        commit(
            path,
            opened.model,
            operation=Operation("gather"),
            expected_parent=opened.version,
            contributions=(FIRST,),
        )


@pytest.mark.parametrize("ids", [("x",), (SECOND, SECOND), ("A" * 64,)])
def test_what_is_no_id_is_refused(path: Path, ids: tuple[str, ...]) -> None:
    opened = checkout(path)
    with pytest.raises(StoreError, match="not different SHA-256"):
        commit(
            path,
            opened.model,
            operation=Operation("gather"),
            expected_parent=opened.version,
            contributions=ids,
        )
    assert checkout(path).version.number == 2


@pytest.mark.parametrize("value", [None, ["x"], [1], [FIRST, FIRST], {}])
def test_a_damaged_list_is_refused(path: Path, value: object) -> None:
    reseal(path, lambda manifest: manifest.update(contributions=value))
    with pytest.raises(CorruptStoreError, match="contributions"):
        checkout(path)
