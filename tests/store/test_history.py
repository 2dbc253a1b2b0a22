"""History, rollback and prune."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from sharespace.errors import (
    CorruptStoreError,
    OptionError,
    StoreNotFoundError,
    TaskExistsError,
    TaskNotFoundError,
)
from sharespace.store import (
    Operation,
    Version,
    checkout,
    commit,
    history,
    load,
    prune,
    remove,
    rename,
    rollback,
    verify,
)
from sharespace.store.directory import find_version
from store.models import WEIRD_NAMES, assert_same, layers, model

MODELS = (model(("a",)), model(("a", "b")), model(("b",), layers=layers(k=(3, 4))))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three versions."""
    parent: Version | None = None
    for n, wanted in enumerate(MODELS):
        operation = Operation("add" if n else "init", tuple(wanted.tasks))
        parent = commit(tmp_path / "s", wanted, operation=operation, expected_parent=parent)
    return tmp_path / "s"


def test_history_is_what_was_committed(path: Path) -> None:
    found = history(path)
    assert [v.number for v in found] == [1, 2, 3]
    assert [v.task_count for v in found] == [1, 2, 1]
    assert found[1].operation == Operation("add", ("a", "b"))
    assert found[2] == checkout(path).version
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", v.created) for v in found)
    for version, wanted in zip(found, MODELS, strict=True):
        opened = checkout(path, version.number)
        assert opened.version == version
        assert_same(opened.model, wanted)
    parents = [checkout(path, v.number).manifest.parent for v in found]
    assert parents == [None, found[0].ref, found[1].ref]


def test_a_rollback_is_a_new_version(path: Path) -> None:
    before = {f: f.read_bytes() for f in path.glob("*/*")}
    version = rollback(path, 1)
    assert (version.number, version.operation) == (4, Operation("rollback", (), 1))
    assert checkout(path).manifest.content == checkout(path, 1).manifest.content
    assert_same(load(path), MODELS[0])
    assert {f: f.read_bytes() for f in before} == before
    assert_same(load(path, 3), MODELS[2])
    assert [v.number for v in history(path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("number", [0, 4, -1, 10**9])
def test_a_version_that_is_not_there(path: Path, number: int) -> None:
    for action in (load, rollback):
        with pytest.raises(StoreNotFoundError, match="Versions: 1, 2, 3"):
            action(path, number)


def test_a_rollback_to_a_damaged_version_is_refused(path: Path) -> None:
    task = path / checkout(path, 1).manifest.content.tasks[0].coefficients.file
    task.write_bytes(flipped(task.read_bytes()))
    with pytest.raises(CorruptStoreError, match="sha256"):
        rollback(path, 1)
    assert history(path)[-1].number == 3


def flipped(data: bytes) -> bytes:
    return bytes([*data[:-1], data[-1] ^ 1])


def test_a_damaged_task_can_be_removed_and_added_again(path: Path) -> None:
    version = rollback(path, 2)
    file = path / checkout(path).manifest.content.tasks[0].coefficients.file
    file.write_bytes(flipped(file.read_bytes()))
    assert remove(path, ["a"]).number == version.number + 1
    assert verify(path).ok
    assert list(load(path).tasks) == ["b"]
    parent = checkout(path).version
    commit(path, MODELS[1], operation=Operation("add", ("a",)), expected_parent=parent)
    assert verify(path, all_versions=True).ok


@pytest.mark.parametrize("damage", [b"", b"{", b"[" * 10**5, b"null"])
def test_a_rollback_repairs_a_damaged_head(path: Path, damage: bytes) -> None:
    (path / "share.json").write_bytes(damage)
    with pytest.raises(CorruptStoreError, match=r"share\.json"):
        load(path)
    version = rollback(path, 3)
    assert (version.number, checkout(path).manifest.parent) == (4, None)
    assert_same(load(path), MODELS[2])


def test_a_rollback_repairs_a_damaged_current_version(path: Path) -> None:
    (path / checkout(path).version.ref.file).write_bytes(b"{}")
    with pytest.raises(CorruptStoreError, match="rollback"):
        load(path)
    assert_same(load(path, 2), MODELS[1])
    rollback(path, 2)
    assert_same(load(path), MODELS[1])
    assert verify(path).ok
    assert not verify(path, all_versions=True).ok


def test_remove_and_rename_touch_no_tensor_file(path: Path) -> None:
    rollback(path, 2)
    (path / "objects").rename(path.parent / "hidden")
    renamed = rename(path, "b", "日本語 🎉")
    assert (renamed.number, renamed.operation.tasks) == (5, ("b", "日本語 🎉"))
    assert list(load(path).tasks) == ["a", "日本語 🎉"]
    remove(path, ["a"])
    (path.parent / "hidden").rename(path / "objects")
    assert_same(load(path), MODELS[1].with_renamed("b", "日本語 🎉").without_tasks("a"))


def test_remove_and_rename_refuse(path: Path) -> None:
    rollback(path, 2)
    with pytest.raises(TaskNotFoundError, match="Known tasks: 'a', 'b'"):
        remove(path, ["a", "c"])
    with pytest.raises(TaskNotFoundError):
        rename(path, "c", "d")
    with pytest.raises(TaskExistsError):
        rename(path, "a", "b")
    for name in ("", "../c", "c\n", "\ud83d\ude00", "c" * 201):
        with pytest.raises(OptionError, match="name"):
            rename(path, "a", name)
    assert len(history(path)) == 4


def test_odd_names_of_earlier_releases_are_read_and_renamed(tmp_path: Path) -> None:
    for at, odd in enumerate(WEIRD_NAMES):
        path = tmp_path / str(at)
        (first, *_others) = MODELS[1].tasks.values()
        model = MODELS[1].with_tasks([first.with_name(odd)])
        commit(path, model, operation=Operation("init"), expected_parent=None)
        assert list(load(path).tasks) == [odd]
        rename(path, odd, "plain")
        assert list(load(path).tasks) == ["plain"]


def test_prune_removes_what_no_version_needs(path: Path) -> None:
    assert prune(path, keep=3).versions == ()
    stray = path / "objects" / f"kept-{'a' * 64}.safetensors"
    stray.write_bytes(b"12345")
    result = prune(path, keep=3)
    assert (result.versions, result.files, result.bytes) == ((), 1, 5)
    result = prune(path, keep=1)
    assert result.versions == (1, 2)
    content = checkout(path).manifest.content
    assert {f"objects/{f.name}" for f in (path / "objects").iterdir()} == set(content.files)
    assert_same(load(path), MODELS[2])
    assert [v.number for v in history(path)] == [3]
    with pytest.raises(StoreNotFoundError):
        load(path, 1)
    following = commit(
        path, MODELS[0], operation=Operation("add"), expected_parent=checkout(path).version
    )
    assert following.number == 4


def test_prune_leaves_foreign_files_alone(path: Path) -> None:
    for name in ("README.md", "objects/notes.txt", "versions/notes.txt"):
        (path / name).write_text("mine")
    prune(path, keep=1)
    assert (path / "objects/notes.txt").exists()
    assert (path / "versions/notes.txt").exists()


def test_prune_refuses_when_it_cannot_know(path: Path) -> None:
    (path / history(path)[1].ref.file).write_bytes(b"{}")
    before = sorted(path.rglob("*"))
    with pytest.raises(CorruptStoreError):
        prune(path, keep=2)
    assert sorted(path.rglob("*")) == before
    with pytest.raises(OptionError):
        prune(path, keep=0)
    prune(path, keep=1)
    assert_same(load(path), MODELS[2])


def test_a_reader_that_is_overtaken_reads_the_new_version(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HEAD was read, then another process committed and pruned."""
    overtaken: list[Version] = []

    def find(root: Path, number: int | None) -> object:
        ref = find_version(root, number)
        if not overtaken:
            overtaken.append(rollback(path, 1))
            prune(path, keep=1)
        return ref

    monkeypatch.setattr("sharespace.store.commits.find_version", find)
    assert_same(load(path), MODELS[0])


def two_copies_put_over_each_other(path: Path) -> tuple[Path, Path]:
    """Both were renamed in apart; the manifests of the second come beside those of the first."""
    other = path.with_name("other")
    shutil.copytree(path, other)
    rename(path, "b", "here")
    rename(other, "b", "there")
    for number in range(2):
        parent = (path, other)[number]
        rename(parent, ("here", "there")[number], "last")
    (path / "lock").unlink()
    for file in (other / "versions").iterdir():
        shutil.copy(file, path / "versions" / file.name)
    return path, other


def test_two_manifests_of_one_number(path: Path) -> None:
    """HEAD and the parents that it descends from say which is the store's."""
    mine, other = two_copies_put_over_each_other(path)
    assert len(list((mine / "versions").iterdir())) == 7
    assert [v.operation.tasks for v in history(mine)][3:] == [("b", "here"), ("here", "last")]
    strays = {f.file: f.detail for f in verify(mine).damaged}
    theirs = {v.ref.file for v in history(other)[3:]}
    assert set(strays) == theirs
    assert all("next writer removes it" in detail for detail in strays.values())
    assert tuple(load(mine, 4).tasks) == ("here",)
    rollback(mine, 4)
    assert verify(mine, all_versions=True).ok
    assert [v.number for v in history(mine)] == [1, 2, 3, 4, 5, 6]


def test_two_manifests_of_one_number_are_pruned(path: Path) -> None:
    mine, _ = two_copies_put_over_each_other(path)
    assert prune(mine, keep=1).versions == (1, 2, 3, 4)
    assert len(list((mine / "versions").iterdir())) == 1
    assert verify(mine, all_versions=True).ok


def test_two_manifests_that_nothing_decides_between(path: Path) -> None:
    """The version that would say it was damaged, so neither is taken for the store's."""
    mine, _ = two_copies_put_over_each_other(path)
    current = checkout(mine).version.ref
    (mine / current.file).unlink()
    with pytest.raises(CorruptStoreError, match="version 4 stands there twice"):
        history(mine)
