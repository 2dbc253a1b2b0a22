"""Writing the file: all of it or none, and nothing replaced unasked."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from report.samples import two_steps
from sharespace.errors import OptionError, StoreNotFoundError
from sharespace.report import write_report
from sharespace.store import verify


@pytest.fixture
def share(tmp_path: Path) -> Path:
    return two_steps(tmp_path / "s")


def test_it_is_written_once(share: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    written = write_report(share, out)
    assert written.bytes == out.stat().st_size
    assert written.version == 2
    before = out.read_bytes()
    with pytest.raises(OptionError, match="there already"):
        write_report(share, out, version=1)
    assert out.read_bytes() == before
    assert write_report(share, out, version=1, overwrite=True).version == 1
    assert out.read_bytes() != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "s"]


def test_places_that_take_no_file(share: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="directory"):
        write_report(share, tmp_path, overwrite=True)
    with pytest.raises(OptionError, match="not there"):
        write_report(share, tmp_path / "no" / "r.html")


def foreign_page(path: Path) -> None:
    path.write_text("<!doctype html>\n<html><head></head><body>work</body></html>\n")


def notes_with_the_mark(path: Path) -> None:
    path.write_text('work on <meta name="generator" content="sharespace">')


def binary_file(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def link_to_a_report(path: Path) -> None:
    path.symlink_to("r.html")


def fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    "make", [foreign_page, notes_with_the_mark, binary_file, link_to_a_report, fifo]
)
def test_only_an_earlier_report_is_overwritten(
    share: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    write_report(share, tmp_path / "r.html")
    make(tmp_path / "x")
    before = _identity(tmp_path / "x")
    with pytest.raises(OptionError, match="only an earlier report is overwritten"):
        write_report(share, tmp_path / "x", overwrite=True)
    assert _identity(tmp_path / "x") == before


@pytest.mark.parametrize("name", ["share.json", "lock", "new.html", "objects/new.html"])
def test_it_is_not_written_into_a_share_model(share: Path, name: str) -> None:
    before = sorted(share.rglob("*")), (share / "share.json").read_bytes()
    with pytest.raises(OptionError, match="is a Share model"):
        write_report(share, share / name, overwrite=True)
    assert (sorted(share.rglob("*")), (share / "share.json").read_bytes()) == before
    assert verify(share).ok


def test_a_failed_write_leaves_nothing(
    share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_source: Path, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OptionError, match="No space left"):
        write_report(share, tmp_path / "r.html")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        write_report(tmp_path / "nothing", tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_it_needs_no_extra(share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("scipy", "scipy.cluster.hierarchy", "matplotlib", "peft", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert write_report(share, tmp_path / "r.html").bytes > 1000


def _identity(path: Path) -> tuple[int, int, int]:
    """What a replacement would change; the time of the last access may change by looking."""
    state = path.lstat()
    return state.st_ino, state.st_size, state.st_mtime_ns
