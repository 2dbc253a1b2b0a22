"""The recipe for the real adapters of Lots-of-LoRAs, on tiny stand-ins in the same layout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("datasets")

from experiments.generation import hub, real, standins
from experiments.generation.answers import rouge
from experiments.generation.hub import Question

from experiments_calls import call
from sharespace import Share
from sharespace.errors import OptionError

ARGUMENTS = ["--tasks", "4", "--batches", "2", "--k", "16", "--examples", "2", "--tokens", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("lots")
    standins.make(made)
    return made


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    datasets.disable_progress_bars()


def test_the_real_recipe_runs_and_goes_on(folder: Path, tmp_path: Path) -> None:
    common = ["--folder", str(folder), "--out", str(tmp_path), *ARGUMENTS]
    call("real", "generation", *common)
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert all(len(scores[stage]) == 4 for stage in real.STAGES)
    share = Share.load(tmp_path / "share")
    assert len(share.tasks) == 4
    assert share.model.settings.method == "share"
    assert "| 2 | " in (tmp_path / "table.md").read_text()
    # What is missing is made again, and nothing else: the store stays at its version.
    scores["final"].popitem()
    kept = {**json.loads((tmp_path / "scores.json").read_text()), "scores": scores}
    (tmp_path / "scores.json").write_text(json.dumps(kept))
    call("real", "generation", *common)
    again = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert len(again["final"]) == 4
    assert Share.load(tmp_path / "share").version == share.version == 2


def test_names_are_joined_by_their_number() -> None:
    adapters = [
        "Lots-of-LoRAs/Mistral-7B-Instruct-v0.2-4b-r16-task350",
        "Lots-of-LoRAs/Mistral-7B-Instruct-v0.2-4b-r16-task627",
        "Lots-of-LoRAs/another",
    ]
    data = ["Lots-of-LoRAs/task350_winomt_classification", "Lots-of-LoRAs/task1_x"]
    found = hub.joined(adapters, data)
    assert [(s.name, s.adapter, s.data) for s in found] == [("task350", adapters[0], data[0])]
    with pytest.raises(OptionError, match="only 1 are there"):
        hub.drawn(found, 2, 1, seed=0)


def test_the_best_reference_counts() -> None:
    asked = [Question("?", ("a house", "a cat")), Question("?", ("yes",))]
    assert rouge(["a cat", "no"], asked) == pytest.approx(50.0)
