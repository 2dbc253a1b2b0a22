"""A store that was committed by the first release is read, for ever, bit for bit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from golden import make_store_v2, make_store_v3
from golden.make_store_v1 import PATH, WEIRD, make, version
from sharespace.store import Operation, checkout, history, load, verify
from store.models import assert_same

HEAD_SHA256 = "43063ecf7c726b82829a4996fc8da906fc0470d96d36bf7f8dde7b6a52a47e03"


def files(path: Path, below: str) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in (path / below).iterdir()}


def test_the_files_are_the_ones_of_the_first_release() -> None:
    data = (PATH / "share.json").read_bytes()
    assert hashlib.sha256(data).hexdigest() == HEAD_SHA256
    assert verify(PATH, all_versions=True).ok


@pytest.mark.parametrize("number", [1, 2])
def test_its_values(number: int) -> None:
    assert_same(load(PATH, number), version(number))


def test_its_history() -> None:
    first, second = history(PATH)
    assert (first.number, first.operation) == (1, Operation("init", (WEIRD,)))
    assert (second.number, second.operation) == (2, Operation("add", ("second",)))
    assert checkout(PATH).version == second


def test_the_same_model_gives_the_same_objects_today(tmp_path: Path) -> None:
    make(tmp_path / "s")
    assert files(tmp_path / "s", "objects") == files(PATH, "objects")


def test_the_exact_merge_shares_the_old_task() -> None:
    old, new = (checkout(PATH, n).manifest.content for n in (1, 2))
    assert old.tasks == new.tasks[:1]
    assert old.basis != new.basis


def test_reading_leaves_no_trace() -> None:
    assert sorted(f.name for f in PATH.iterdir()) == ["objects", "share.json", "versions"]


def test_the_second_schema(tmp_path: Path) -> None:
    """Groups of tasks with subspaces of their own."""
    path = make_store_v2.PATH
    assert verify(path, all_versions=True).ok
    assert_same(load(path), make_store_v2.model())
    make_store_v2.make(tmp_path / "s")
    assert files(tmp_path / "s", "objects") == files(path, "objects")


def test_the_third_schema(tmp_path: Path) -> None:
    """Samples of the base weights, and what a task has of files, labels and a start."""
    path = make_store_v3.PATH
    assert verify(path, all_versions=True).ok
    assert_same(load(path), make_store_v3.model())
    make_store_v3.make(tmp_path / "s")
    assert files(tmp_path / "s", "objects") == files(path, "objects")
