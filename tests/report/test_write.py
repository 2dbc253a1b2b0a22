"""Writing the file: all of it or none, and nothing replaced unasked."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from report.samples import two_steps
from sharespace.errors import MissingExtraError, OptionError, StoreNotFoundError
from sharespace.report import write_report


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


def test_without_the_extra_it_says_what_to_install(
    share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.cluster.hierarchy", None)
    with pytest.raises(MissingExtraError, match=r"sharespace\[report\]"):
        write_report(share, tmp_path / "r.html")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
