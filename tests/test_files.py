"""Files and directories appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from sharespace import files
from sharespace.errors import CorruptStoreError, OptionError
from sharespace.files import (
    EXPORT_MARK,
    TEMPORARY,
    export_directory,
    new_directory,
    remove_temporary,
    write_file,
)
from store.steps import run_and_kill


def test_a_killed_writer_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    for step in count():
        (tmp_path / "f").write_bytes(b"old")
        completed = run_and_kill(lambda: write_file(tmp_path / "f", b"the new bytes"), step)
        data = (tmp_path / "f").read_bytes()
        assert data == b"the new bytes" if completed else data in (b"old", b"the new bytes")
        if completed:
            break
    assert step == 3, "the steps were not counted"


def fill(target: Path, text: str, *, overwrite: bool = False) -> None:
    with export_directory(target, overwrite=overwrite) as aside:
        (aside / "one").write_text(text)
        (aside / "below").mkdir()
        (aside / "below" / "two").write_text(text)


def content(folder: Path) -> list[str]:
    return [p.read_text() for p in (folder / "one", folder / "below" / "two") if p.exists()]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("exchanges", [False, True])
def test_a_killed_writer_leaves_no_half_of_a_directory(
    tmp_path: Path, overwrite: bool, exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if exchanges and not can_exchange(tmp_path):
        pytest.skip("this file system can't exchange two names")
    if not exchanges:
        monkeypatch.setattr(files, "exchange", lambda _first, _second: False)
    for step in count():
        target = tmp_path / str(step) / "x"
        target.parent.mkdir()
        if overwrite:
            fill(target, "old")
        completed = run_and_kill(
            lambda target=target: fill(target, "new", overwrite=overwrite),  # type: ignore[misc]
            step,
        )
        hidden = [p for p in target.parent.iterdir() if p.name.startswith(TEMPORARY)]
        if completed:
            assert content(target) == ["new"] * 2
            break
        if overwrite and exchanges:
            assert content(target) in (["old"] * 2, ["new"] * 2)
        elif overwrite and not content(target):
            # Between its two renames: nothing is lost, and both are beside under hidden names.
            assert sorted(map(content, hidden)) == [["new"] * 2, ["old"] * 2]
        else:
            assert content(target) in ([], ["old"] * 2, ["new"] * 2)
        fill(target, "later", overwrite=True)
        assert content(target) == ["later"] * 2
        assert [p.name for p in target.parent.iterdir()] == ["x"], "leftovers were not cleared"
    assert not hidden
    assert step == (2 if not overwrite else 3 if exchanges else 5), "the steps were not counted"


def can_exchange(folder: Path) -> bool:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / name).write_text("")
    able = files.exchange(folder / "a", folder / "b")
    assert (folder / "a" / ("b" if able else "a")).exists()
    return able


def test_a_directory_that_is_being_filled_is_no_leftover(tmp_path: Path) -> None:
    with export_directory(tmp_path / "x") as aside:
        (aside / "one").write_text("first")
        fill(tmp_path / "x", "second")
        assert (aside / "one").exists()
        (tmp_path / "x" / "one").unlink()
        (tmp_path / "x" / "below" / "two").unlink()
        (tmp_path / "x" / "below").rmdir()
        (tmp_path / "x" / EXPORT_MARK).unlink()
    assert content(tmp_path / "x") == ["first"]


def foreign_directory(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("work")


def export_and_a_file(path: Path) -> None:
    fill(path, "old")
    (path / "below" / "README.md").write_text("work")


def changed_export(path: Path) -> None:
    fill(path, "old")
    (path / "one").write_text("trained further")


def export_with_a_link(path: Path) -> None:
    fill(path, "old")
    (path / "link").symlink_to("one")


def export_with_a_broken_mark(path: Path) -> None:
    fill(path, "old")
    (path / EXPORT_MARK).write_text("{")


def link_to_an_export(path: Path) -> None:
    fill(path.with_name("real"), "old")
    path.symlink_to("real")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def plain_file(path: Path) -> None:
    path.write_text("work")


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): str(p.readlink())
        if p.is_symlink()
        else ("" if p.is_dir() else p.read_text())
        for p in folder.rglob("*")
    }


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (foreign_directory, "carries no mark"),
        (export_and_a_file, r"'below/README.md' in it was not written"),
        (changed_export, r"'one' in it was changed"),
        (export_with_a_link, r"'link' in it was not written"),
        (export_with_a_broken_mark, "damaged"),
        (link_to_an_export, "symbolic link"),
        (link_to_itself, "symbolic link"),
        (plain_file, "a file of that name"),
    ],
)
def test_only_an_earlier_export_is_overwritten(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path / "x")
    before = snapshot(tmp_path)
    with pytest.raises(OptionError, match=reason):
        fill(tmp_path / "x", "new", overwrite=True)
    assert snapshot(tmp_path) == before


def test_the_current_directory_and_those_above_it_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "x", "old")
    monkeypatch.chdir(tmp_path / "x" / "below")
    for path in (Path(), Path(".."), tmp_path / "x"):
        with pytest.raises(OptionError, match="current directory"):
            fill(path, "new", overwrite=True)


def test_nothing_is_written_into_a_share_model(tmp_path: Path) -> None:
    (tmp_path / "s" / "objects").mkdir(parents=True)
    (tmp_path / "s" / "share.json").write_text("{}")
    (tmp_path / "link").symlink_to("s")
    before = snapshot(tmp_path)
    for path in ("s", "s/new", "s/objects/new", "link/new"):
        with pytest.raises(OptionError, match="is a Share model"):
            fill(tmp_path / path, "new", overwrite=True)
    assert snapshot(tmp_path) == before


def test_a_directory_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_directory(tmp_path / "x") as aside:
            (aside / "f").write_text("half")
            assert not (tmp_path / "x").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_does_not_take_it(tmp_path: Path) -> None:
    def failing() -> None:
        with new_directory(tmp_path / "x") as aside:
            (aside / "missing" / "f").write_text("")

    with pytest.raises(OptionError, match="cannot be written"):
        failing()
    assert not list(tmp_path.iterdir())


def test_a_store_that_breaks_while_it_is_exported_is_named(tmp_path: Path) -> None:
    def reading() -> None:
        with new_directory(tmp_path / "x"):
            raise CorruptStoreError("objects/a", "its bytes are not those that were committed")

    with pytest.raises(CorruptStoreError, match="objects/a"):
        reading()
    assert not list(tmp_path.iterdir())


def test_what_killed_writers_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}a").write_text("half")
    (tmp_path / f"{TEMPORARY}b").mkdir()
    (tmp_path / f"{TEMPORARY}b" / "c").write_text("half")
    (tmp_path / ".hidden").write_text("whole")
    remove_temporary(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".hidden"]


def test_files_and_directories_have_the_usual_rights(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "f").write_text("")
    fill(tmp_path / "x", "new")
    write_file(tmp_path / "f", b"")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "plain" / "f").stat().st_mode
