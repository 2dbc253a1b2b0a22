"""Files and directories appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from sharespace.errors import CorruptStoreError, OptionError
from sharespace.files import TEMPORARY, new_directory, remove_temporary, write_file
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
    with new_directory(target, overwrite=overwrite) as aside:
        (aside / "one").write_text(text)
        (aside / "below").mkdir()
        (aside / "below" / "two").write_text(text)


def content(folder: Path) -> list[str]:
    return [p.read_text() for p in (folder / "one", folder / "below" / "two") if p.exists()]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_killed_writer_leaves_no_half_of_a_directory(tmp_path: Path, overwrite: bool) -> None:
    for step in count():
        target = tmp_path / str(step) / "x"
        target.parent.mkdir()
        if overwrite:
            fill(target, "old")
        completed = run_and_kill(
            lambda target=target: fill(target, "new", overwrite=overwrite),  # type: ignore[misc]
            step,
        )
        assert content(target) in ([["new"] * 2] if completed else [[], ["old"] * 2, ["new"] * 2])
        if overwrite and not content(target):
            # Between its two renames: nothing is lost, and both are beside under hidden names.
            hidden = [content(p) for p in target.parent.iterdir() if p.name.startswith(TEMPORARY)]
            assert sorted(hidden) == [["new"] * 2, ["old"] * 2]
        if completed:
            break
    assert [p.name for p in target.parent.iterdir()] == ["x"]
    assert step == (3 if overwrite else 2), "the steps were not counted"


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
