"""The experiment on images from data to tables and figures, in its tiny version."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from shared_data import SHARED

DATA = SHARED / "data"
pytestmark = pytest.mark.skipif(
    not (DATA / "images").is_dir() or not (DATA / "backbones").is_dir(),
    reason="images and weights are not here",
)
METHODS = ("head_only", "per_task_lora", "share_strict", "joint_lora")


def call(script: ModuleType, patch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    """As from the command line, without importing everything anew."""
    patch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def test_from_data_to_tables_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.images import kinds, run, summarise, transfer

    results = tmp_path / "results"
    common = ("--data", DATA, "--cache", tmp_path / "cache", "--quick", "--base", "vit")
    runs = ("--streams", "split-cifar-odd", "--seeds", "0", "--methods", *METHODS)
    call(run, monkeypatch, *common, "--out", results / "runs", *runs)
    found = json.loads((results / "runs" / "vit" / "split-cifar-odd-0.json").read_text())
    assert set(found["methods"]) == set(METHODS)
    trained = found["methods"]["share_strict"]["trainable"]
    assert trained["odd-4"] == 2 * 10 * 10  # query and value of one layer
    capsys.readouterr()
    call(run, monkeypatch, *common, "--out", results / "runs", *runs)
    assert not capsys.readouterr().out  # nothing is run twice

    call(kinds, monkeypatch, *common, "--out", results / "kinds", "--runs", results / "runs")
    made = json.loads((results / "kinds" / "vit" / "split-cifar-odd-0.json").read_text())["kinds"]
    assert list(made) == ["data only", "adapters only", "hybrid"]
    assert not any(made["adapters only"]["trained"].values())
    assert [t for t, n in made["hybrid"]["trained"].items() if n] == ["odd-3"]
    out = ("--out", results / "transfer", "--targets", "odd-4")
    call(transfer, monkeypatch, *common, *out)

    figures = tmp_path / "figures"
    figures.mkdir()
    call(summarise, monkeypatch, "--results", results, "--figures", figures)
    tables = (results / "tables.md").read_text()
    assert all(f"| {name} |" in tables for name in METHODS)
    assert "| odd-4 | subspace of 3 earlier tasks |" in tables
    assert "| hybrid |" in tables
    claims = json.loads((results / "claims.json").read_text())["claims"]
    assert len(claims) == 5
    assert len(list(figures.glob("images-*.png"))) == 3


def test_convolutions_of_the_mobilenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.images import run

    common = ("--data", DATA, "--cache", tmp_path / "cache", "--quick", "--seeds", "0")
    out = ("--streams", "five-sets", "--out", tmp_path, "--methods", "per_task_lora")
    call(run, monkeypatch, *common, *out)
    # The own LoRAs of convolutions now come from files.
    call(run, monkeypatch, *common, *out, "share_strict")
    found = json.loads((tmp_path / "mobilenet" / "five-sets-0.json").read_text())
    strict = found["methods"]["share_strict"]
    assert strict["trainable"]["mnist"] == 8 * (128 + 256) + 8 * (256 + 256)
    assert strict["trainable"]["things"] == 2 * 32 * 32
    assert len(strict["matrix"]["steps"]) == 6
