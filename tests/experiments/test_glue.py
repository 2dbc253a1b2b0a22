"""The experiment on GLUE: its code on tiny stand-ins."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from experiments.glue import jobs, run, standins, table

from sharespace import cli
from sharespace.errors import RecipeError
from sharespace.stream.recipe import Recipe, load_recipe, record

ROOT = Path(__file__).parents[2]
GLUE = ROOT / "experiments" / "glue"
TASKS = ("cola", "mrpc", "rte", "stsb", "qnli", "sst2")
LORA = 4 * 8 * (32 + 32)
"""Numbers of a LoRA of rank 8 at the query and value of both layers of the stand-in."""


@pytest.fixture(scope="session")
def datasets() -> Any:
    pytest.importorskip("psutil", reason="the extra bench is not installed")
    return pytest.importorskip("datasets", reason="the extra train is not installed")


@pytest.fixture(autouse=True, scope="module")
def offline(datasets: Any) -> Iterator[None]:
    """Also for the fixtures below: ``datasets`` reports each load to the Hub, local ones too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, datasets: Any) -> Path:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("standins")
    standins.make(folder)
    return folder


@pytest.fixture(scope="module")
def results(world: Path) -> tuple[Path, str]:
    """The whole comparison as the command of the README runs it: its file, and what it prints."""
    out, said = world / "results", io.StringIO()
    with contextlib.redirect_stdout(said):
        run.main([str(world / "full.yaml"), "--out", str(out)])
    return out / "seed-0.json", said.getvalue()


def stream(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What ``sharespace run --json`` prints."""
    monkeypatch.setattr(sys, "argv", ["sharespace", "run", str(path), "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    return json.loads(capsys.readouterr().out)


def edited(path: Path, **keys: str) -> Recipe:
    """A stand-in recipe with other keys at its top."""
    lines = [x for x in path.read_text().splitlines() if x.partition(":")[0] not in keys]
    other = path.with_name(f"edited-{'-'.join(keys)}.yaml")
    other.write_text("\n".join([*(f"{k}: {v}" for k, v in keys.items()), *lines]))
    return load_recipe(other)


def test_all_methods_run_from_the_command_line(results: tuple[Path, str]) -> None:
    found = json.loads(results[0].read_text())["methods"]
    assert tuple(found) == run.METHODS
    for outcome in found.values():
        assert tuple(outcome["matrix"]["tasks"]) == TASKS
        assert None not in outcome["matrix"]["scores"][-1]
    assert set(found["per_task_lora"]["trainable"].values()) == {LORA}
    assert set(found["head_only"]["trainable"].values()) == {0}
    assert found["per_task_lora"]["steps"] == 6 * 4
    assert found["share_strict"]["steps"] == 6 * 4
    assert found["share_full"]["steps"] == 6 * 4 + 6 * 2
    assert found["share_full"]["uses_old_data"]
    # k grows from 8 by phi = 2 a task: 16 coefficients a direction and 128 numbers of phi a module.
    expected = [LORA, *(4 * (16 * (8 + 2 * t) + 16 * 2 + 128) for t in range(5))]
    assert list(found["share_strict"]["trainable"].values()) == expected


def test_what_is_there_is_not_run_again(
    world: Path, results: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = results[0].read_bytes()
    run.main([str(world / "full.yaml"), "--out", str(results[0].parent)])
    printed = capsys.readouterr().out
    assert "seed 0" not in printed
    assert printed in results[1]
    assert results[0].read_bytes() == before


def test_results_of_another_recipe_are_not_mixed_in(world: Path, results: tuple[Path, str]) -> None:
    recipe = edited(world / "full.yaml", phi="1")
    with pytest.raises(RecipeError, match="phi"):
        run.run(recipe, ["share_strict"], results[0].parent)


def test_paper_and_runs_stand_apart(results: tuple[Path, str]) -> None:
    ours, _, paper = results[1].partition("## Printed in the paper")
    assert "share_strict" in ours
    assert "83.43" not in ours
    assert "| Share, continual, final | 55.99 | 68.38 |" in paper
    assert "don't hold one against the other" in paper
    assert "minus printed" not in paper


def test_the_stream_learns_what_the_comparison_does(
    world: Path,
    results: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = stream(world / "strict.yaml", monkeypatch, capsys)
    compared = json.loads(results[0].read_text())["methods"]["share_strict"]
    assert found["matrix"]["tasks"] == list(TASKS)
    assert found["matrix"]["scores"] == [
        [x if x is None else pytest.approx(x, abs=0.05) for x in row]
        for row in compared["matrix"]["scores"]
    ]
    trained = {t: v["coefficients"] + v["temporary"] + v["lora"] for t, v in found["tasks"].items()}
    assert trained == compared["trainable"]


def test_the_stream_of_share_full_finetunes_every_task(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = stream(world / "full.yaml", monkeypatch, capsys)
    assert {name: task["steps"] for name, task in found["tasks"].items()} == dict.fromkeys(
        TASKS, 4 + 2
    )


def test_standins_are_as_glue_is(world: Path, datasets: Any) -> None:
    columns = {
        "cola": ["sentence"],
        "mrpc": ["sentence1", "sentence2"],
        "rte": ["sentence1", "sentence2"],
        "stsb": ["sentence1", "sentence2"],
        "qnli": ["question", "sentence"],
        "sst2": ["sentence"],
    }
    for name in TASKS:
        files = {
            split: str(world / "data" / name / f"{split}-00000-of-00001.parquet")
            for split in standins.SPLITS
        }
        for split, file in files.items():
            part = datasets.Dataset.from_parquet(file, cache_dir=str(world / "cache"))
            assert part.column_names == [*columns[name], "label", "idx"]
            assert len(part) == standins.SPLITS[split]
            assert (set(part["label"]) == {-1}) == (split == "test")
            names = getattr(part.features["label"], "names", [])
            assert tuple(names) == standins.TASKS[name]


def test_standins_are_the_same_every_time(world: Path, tmp_path: Path) -> None:
    standins.make(tmp_path)
    for file in ("base/model.safetensors", "base/merges.txt", "full.yaml"):
        assert (tmp_path / file).read_bytes() == (world / file).read_bytes()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", "share"),
        ("variance", "0.6"),
        ("store_dtype", "float16"),
        ("lora_dropout", "0.1"),
        ("router", "true"),
        ("early_stopping_patience", "2"),
        ("task_type", "causal-lm"),
    ],
)
def test_what_the_comparison_cannot_do_is_refused(key: str, value: str, world: Path) -> None:
    with pytest.raises(RecipeError, match=key):
        jobs.make(edited(world / "full.yaml", **{key: value}))


def test_tasks_with_other_settings_are_refused(world: Path) -> None:
    recipe = load_recipe(world / "full.yaml")
    one = recipe.tasks[1]
    for changed in (
        replace(one, subspace=replace(one.subspace, phi=1)),
        replace(one, training=replace(one.training, weight_decay=0.0)),
    ):
        tasks = (recipe.tasks[0], changed, *recipe.tasks[2:])
        with pytest.raises(RecipeError, match="other than"):
            jobs.make(replace(recipe, tasks=tasks))


def test_jobs_have_the_rates_and_steps_of_their_tasks(world: Path) -> None:
    recipe = load_recipe(world / "full.yaml")
    by_epochs = tuple(
        replace(spec, training=replace(spec.training, max_steps=-1, num_train_epochs=3))
        for spec in recipe.tasks
    )
    made, settings = jobs.make(replace(recipe, tasks=by_epochs))
    assert [job.steps for job in made] == [3 * 48 / 8] * 6
    assert [job.rate for job in made] == [1, 1, 1.25, 1, 1, 1.25]
    assert settings.training(settings.lora, made[2]).learning_rate == pytest.approx(5e-4)
    assert settings.training(settings.coefficients, made[2]).learning_rate == pytest.approx(5e-3)
    assert settings.finetune is not None
    assert settings.training(settings.finetune, made[2]).learning_rate == 1e-3
    assert settings.training(settings.finetune, made[2]).max_steps == 2
    assert settings.lora.lr_scheduler_type == "linear"


def test_only_runs_of_the_published_recipe_are_held_against_the_paper(
    results: tuple[Path, str], tmp_path: Path
) -> None:
    found = json.loads(results[0].read_text())
    found["recipe"] = record(jobs.with_seed(load_recipe(GLUE / "full.yaml"), 7))
    paper = table.printed()
    strict = found["methods"]["share_strict"]["matrix"]
    strict["scores"][-1] = [x + 1 for x in paper["rows"][1]["scores"]]
    file = tmp_path / "seed-7.json"
    file.write_text(json.dumps(found))
    line = next(x for x in table.text([file]).splitlines() if x.count("+1.00") > 5)
    assert line.startswith("| Share, continual, final |")
    found["recipe"]["recipe"]["lora_rank"] = 4
    file.write_text(json.dumps(found))
    assert "minus printed" not in table.text([file])
