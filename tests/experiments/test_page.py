"""docs/results.md says what the experiments' files say now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import EXPERIMENTS, page


def test_page_is_in_sync() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "run: python -m experiments.page"


def test_experiments_with_claims_are_on_the_page() -> None:
    for file in page.HERE.glob("*/results/claims.json"):
        assert file.parents[1].name in EXPERIMENTS


def test_a_section_is_made_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "toy" / "results"
    results.mkdir(parents=True)
    (tmp_path / "toy" / "README.md").write_text(
        "# Toy stream\n\nWhat it is.\n\n- a list\n\n## What came out\n\nSee [tables](results/x.md)."
        "\n\n![A](../../docs/figures/toy.png)\n\n## Later\n\nHidden.\n"
    )
    claim = {"claim": "no growth", "paper": "1x", "here": "2x", "holds": "no", "note": ""}
    (results / "claims.json").write_text(json.dumps({"command": "make it", "claims": [claim]}))
    (results / "tables.md").write_text(f"## All\n\n| a |\n|---|\n\n{'word ' * 40}\n")
    monkeypatch.setattr(page, "HERE", tmp_path)
    monkeypatch.setattr(page, "EXPERIMENTS", ("toy", "not_there"))
    text = page.page()
    assert "| no growth | 1x | 2x | no | [Toy stream](#toy-stream) |  |" in text
    assert "What it is." in text
    assert "See `tables`." in text
    assert "![A](figures/toy.png)" in text
    assert "#### All" in text
    assert "Hidden" not in text
    assert "a list" not in text
    assert max(map(len, text.splitlines())) <= page.WIDTH
