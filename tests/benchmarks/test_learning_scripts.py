"""The benchmarks of learning and serving run, at a tiny size, and their reports can be printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="extra 'bench' is not installed")
pytest.importorskip("transformers", reason="extra 'train' is not installed")

from benchmarks import (
    common,
    gpu,
    many_tasks,
    merge_cost,
    mixed_added,
    mixed_batch,
    training_step,
)


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


@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
def test_mixed_batches_of_every_contender(tmp_path: Path) -> None:
    out = tmp_path / "mixed.json"
    small = ["--layers", "1", "--width", "32", "--rows", "4", "--length", "4", "--rounds", "1"]
    mixed_batch.main([*small, "--k", "4", "--p", "2", "--tasks", "1", "3", "--out", str(out)])
    found = json.loads(out.read_text())
    assert [(s["shape"], s["targets"], s["phase"]) for s in found["sets"]] == [
        (shape, targets, phase)
        for shape, known in mixed_batch.TARGETS.items()
        for targets in known
        for phase in mixed_batch.PHASES
    ]
    run = found["sets"][0]["runs"]["3"]
    # 2 k p numbers a module against r (n + d), and the weights of a whole model.
    assert run["MixedTasks"]["bytes_a_task"] == 2 * 2 * 4 * 2 * 4
    assert run["adapter_names"]["bytes_a_task"] == 2 * 8 * 64 * 4
    assert run["merged copies"]["bytes_a_task"] > 32 * 32 * 4 * 8
    assert "| llama | all linear | step | 3 |" in mixed_batch.report(found)


@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
def test_what_modules_add(tmp_path: Path) -> None:
    out = tmp_path / "added.json"
    small = ["--layers", "1", "--width", "32", "--rows", "4", "--length", "4", "--rounds", "2"]
    chosen = ["--shapes", "bert", "--phases", "prompt", "--tasks", "3"]
    mixed_added.main([*small, *chosen, "--k", "4", "--p", "2", "--out", str(out)])
    found = json.loads(out.read_text())
    assert [line["targets"] for line in found["lines"]] == ["q, v", "all linear"]
    for name in ("products", "MixedTasks", "adapter_names"):
        few, all_of_them = (line[name] for line in found["lines"])
        assert 0 < few < all_of_them, "two of six modules"
    assert "| bert | all linear | prompt | 3 |" in mixed_added.report(found)


@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
def test_the_command_for_a_gpu_starts_anywhere(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    gpu.main(["--device", "cpu", "--quick", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["device"] == common.cpu_model()
    assert found["builds"][0]["runs"]["cpu"]["error"] < 0.5
    assert [s["phase"] for s in found["mixed"]] == ["prompt", "step"] * 2
    assert "| 3 x 48, r=4, k=8 | cpu |" in gpu.report(found)


def test_stores_of_many_tasks(tmp_path: Path) -> None:
    out = tmp_path / "many.json"
    small = ["--layers", "1", "--width", "32", "--k", "4", "--p", "2"]
    many_tasks.main([*small, "--tasks", "60", "120", "--out", str(out)])
    found = json.loads(out.read_text())
    assert [p["tasks"] for p in found["points"]] == [60, 120]
    assert len({p["coefficients"] for p in found["points"]}) == 1
    assert "| 120 |" in many_tasks.report(found)
