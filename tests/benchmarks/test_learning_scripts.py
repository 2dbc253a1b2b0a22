"""The benchmarks of learning run, at a tiny size, and their reports can be printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="extra 'bench' is not installed")
pytest.importorskip("transformers", reason="extra 'train' is not installed")

from benchmarks import merge_cost, training_step


@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")
def test_a_training_step_of_every_contender(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_step, "_peak", lambda *_: 1)
    out = tmp_path / "step.json"
    small = ["--shapes", "minilm", "--layers", "1", "--rounds", "1", "--batch", "2"]
    training_step.main([*small, "--length", "4", "--out", str(out)])
    found = json.loads(out.read_text())
    assert [s["targets"] for s in found["sets"]] == list(training_step.TARGETS)
    runs = found["sets"][1]["runs"]
    lora, share = runs["LoRA r=8"], runs["Share phi=0"]
    assert share["trained"] * 15 < lora["trained"]
    assert share["optimizer_and_gradients"] * 15 < lora["optimizer_and_gradients"]
    assert "Share core" in training_step.report(found)


def test_merges_of_every_shape(tmp_path: Path) -> None:
    out = tmp_path / "merge.json"
    merge_cost.main(["--models", "1", "--tasks", "2", "--repeats", "1", "--out", str(out)])
    found = json.loads(out.read_text())
    assert len(found["modules"]) == 3
    assert "MiniLM" in merge_cost.report(found)
