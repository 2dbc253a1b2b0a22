"""``sharespace report`` as a shell runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def share(run: Run, adapters: Path, tmp_path: Path) -> Path:
    path = tmp_path / "glue.share"
    assert run("init", path, f"{adapters}/*", "--k", 2).code == 0
    return path


def test_it_writes_a_page_and_says_what_it_warns_of(run: Run, share: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    said = run("report", share, "-o", out)
    assert said.code == 0
    assert "the report of version 1" in said.out
    assert "The cap is reached" in said.out
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_json(run: Run, share: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    found = run("report", share, "--out", out, "--json").json
    assert found["path"] == str(out)
    assert found["bytes"] == out.stat().st_size
    assert found["version"] == 1
    assert {"kind", "level", "title", "text", "remedy"} == set(found["notices"][0])


def test_it_replaces_only_when_told(run: Run, share: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    out.write_text("mine")
    said = run("report", share, "-o", out)
    assert said.code == 2
    assert "--overwrite" in said.err
    assert out.read_text() == "mine"
    assert run("report", share, "-o", out, "--overwrite").code == 2, "it is no report"
    assert out.read_text() == "mine"
    out.unlink()
    assert run("report", share, "-o", out).code == 0
    assert run("report", share, "-o", out, "--overwrite").code == 0


def test_an_earlier_version_and_one_that_is_not_there(
    run: Run, share: Path, adapters: Path, tmp_path: Path
) -> None:
    run("merge", share, f"again={adapters / 'sst2'}")
    assert run("report", share, "-o", tmp_path / "1.html", "--version", 1).code == 0
    said = run("report", share, "-o", tmp_path / "9.html", "--version", 9)
    assert said.code == 2
    assert not (tmp_path / "9.html").exists()


def test_open_shows_it(
    run: Run, share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("typer.launch", shown.append)
    run("report", share, "-o", tmp_path / "r.html", "--open")
    assert shown == [str(tmp_path / "r.html")]
