"""The experiment on images from data to tables and figures, in its tiny version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments_calls import call
from shared_data import SHARED

DATA = SHARED / "data"
pytestmark = pytest.mark.skipif(
    not (DATA / "images").is_dir() or not (DATA / "backbones").is_dir(),
    reason="images and weights are not here",
)
METHODS = ("head_only", "per_task_lora", "share_strict")


def test_from_data_to_tables_and_figures(tmp_path: Path) -> None:
    results, figures = tmp_path / "results", tmp_path / "figures"
    places = ("--data", DATA, "--cache", tmp_path / "cache", "--out", results)
    common = (*places, "--quick", "--base", "vit", "--seeds", 0)
    call("run", "images", *common, "--orders", "split-cifar-odd", "--methods", *METHODS)
    run = json.loads((results / "runs" / "vit" / "split-cifar-odd-0.json").read_text())
    assert set(run["methods"]) == set(METHODS)
    trained = run["methods"]["share_strict"]["trainable"]
    assert trained["odd-3"] == 2 * 10 * 10  # query and value of one layer

    call("kinds", "images", *common)
    made = json.loads((results / "kinds" / "vit" / "split-cifar-odd-0.json").read_text())["kinds"]
    assert list(made) == ["data only", "adapters only", "hybrid"]
    assert not any(made["adapters only"]["trained"].values())
    assert [t for t, n in made["hybrid"]["trained"].items() if n] == ["odd-3"]
    trials = ("--lora", 2, 1e-3, 2, "--core", 4, 2, 1e-2, 2)
    call("tune", "images", *common, "--tasks", "odd-4", *trials)

    call("summarise", "images", "--results", results, "--figures", figures)
    tables = (results / "tables.md").read_text()
    assert all(f"| {name} |" in tables for name in METHODS)
    assert "| hybrid |" in tables
    assert "| core p=4 phi=2 rate=0.01 steps=2 | " in tables
    claims = json.loads((results / "claims.json").read_text())["claims"]
    assert len(claims) == 4
    assert len(list(figures.glob("images-*.png"))) == 2


def test_convolutions_of_the_mobilenet(tmp_path: Path) -> None:
    places = ("--data", DATA, "--cache", tmp_path / "cache", "--out", tmp_path, "--quick")
    common = (*places, "--seeds", 0, "--orders", "five-sets", "--methods")
    call("run", "images", *common, "per_task_lora")
    # The own LoRAs of convolutions now come from files.
    call("run", "images", *common, "per_task_lora", "share_strict")
    run = json.loads((tmp_path / "runs" / "mobilenet" / "five-sets-0.json").read_text())
    strict = run["methods"]["share_strict"]
    assert strict["trainable"]["mnist"] == 8 * (128 + 256) + 8 * (256 + 256)
    assert strict["trainable"]["fashion-rotated"] == 2 * 32 * 32
    assert len(strict["matrix"]["steps"]) == 2
