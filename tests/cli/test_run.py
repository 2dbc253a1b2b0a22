"""``sharespace run``: a recipe from the shell."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from cli.conftest import Ran
from stream import world

Run = Callable[..., Ran]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets: Any = pytest.importorskip("datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    world.make(tmp_path)
    return tmp_path


def test_a_stream_for_people_and_again_as_json(run: Run, folder: Path) -> None:
    recipe = world.recipe(folder, max_steps=2, router=True)
    said = run("run", recipe)
    assert said.code == 0
    for word in ("routed right", "with router", "among all classes", "router.safetensors"):
        assert word in said.out
    assert "legal: no training data was at hand: the router sends nothing to it" in said.out
    assert "router saved: 3 tasks" in said.err
    for word in (
        "colour",
        "legal",
        "size",
        "mood",
        "accuracy",
        "acc ",
        "bwt 0.00",
        "out.share, version 4",
    ):
        assert word in said.out
    assert "mood: committed as version 4" in said.err
    again = run("run", recipe, "--json")
    assert again.err == ""
    found = again.json
    assert list(found["tasks"]) == ["colour", "legal", "size", "mood"]
    assert [task["how"] for task in found["tasks"].values()] == ["lora", "adapter", "data", "both"]
    assert found["version"] == 4
    assert len(found["matrix"]["scores"]) == 4
    assert set(found["measures"]) == {"acc", "bwt", "forgetting"}
    assert found["bytes"]["total"] > 0
    assert found["router"]["tasks"] == ["colour", "size", "mood"]
    assert found["router"]["path"] == str(folder / "out.share.run" / "router.safetensors")
    assert set(found["router"]["scores"]["size"]) == set(found["router"]["means"])
    assert [text.partition(":")[0] for text in found["notices"]] == ["legal"]
    info = run("info", folder / "out.share", "--json").json
    assert list(info["tasks"]) == list(found["tasks"])
    assert run("run", recipe, "--json").json == found
    assert str(folder) not in (folder / "out.share" / "share.json").read_text()
    for path in (folder / "out.share" / "objects").iterdir():
        assert str(folder).encode() not in path.read_bytes()


def test_missing_scores_are_told(run: Run, folder: Path) -> None:
    run("run", world.recipe(folder, world.DATA, max_steps=2))
    shutil.rmtree(folder / "data")
    said = run("run", world.recipe(folder, world.DATA, world.LEGAL, max_steps=2))
    assert said.code == 0
    assert "colour: not scored, its evaluation data is gone" in said.err
    assert "colour: not scored, its evaluation data is gone" in said.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rat": 1e-3}, "did you mean learning_rate"),
        ({"k": 0}, "must be at least 1"),
        ({"base": "nowhere"}, "nowhere"),
        ({"target_modules": ["nothing"]}, "no LoRA can be made"),
    ],
)
def test_bad_recipes_are_one_message(
    run: Run, folder: Path, change: dict[str, Any], message: str
) -> None:
    said = run("run", world.recipe(folder, world.DATA, **change))
    assert said.code == 2
    assert said.out == ""
    error = [line for line in said.err.splitlines() if line.startswith("sharespace: ")]
    assert len(error) == 1
    assert message in error[0]
    assert "Traceback" not in said.err
    assert not list(folder.glob("out.share*"))


def test_a_missing_recipe(run: Run, tmp_path: Path) -> None:
    said = run("run", tmp_path / "none.yaml")
    assert said.code == 2
    assert said.err.count("\n") == 1
    assert "cannot be read" in said.err
