"""Streams of every kind, end to end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sharespace import Share
from sharespace.errors import (
    CorruptStoreError,
    RecipeError,
    SharespaceError,
    StoreConflictError,
    StoreExistsError,
)
from sharespace.store import history, rollback
from sharespace.stream import Event, StreamResult, run
from stream import world

Snapshot = Callable[[Path], dict[str, bytes]]
FEW: dict[str, Any] = {"max_steps": 2}


def stages(events: list[Event], stage: str) -> list[str]:
    return [event.task for event in events if event.stage == stage]


def test_every_step_is_committed_with_its_scores(
    undisturbed: tuple[Path, StreamResult, tuple[str, ...]],
) -> None:
    path, found, _ = undisturbed
    share = Share.load(path)
    assert share.tasks == ("colour", "legal", "size", "mood")
    assert [v.operation.verb for v in history(path)] == ["init", "merge", "merge", "merge+finetune"]
    assert [one.how for one in found.learned] == ["lora", "adapter", "data", "both"]
    assert all(max(layer.k) <= 6 for layer in share.model.layers.values())
    assert found.matrix is not None
    assert found.matrix.tasks == ("colour", "size", "mood")
    assert found.matrix.steps == ("colour", "legal", "size", "mood")
    assert found.matrix.learned == (0, 2, 3)
    given = [[score is not None for score in row] for row in found.matrix.scores]
    assert given == [[1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert found.measures["acc"] == pytest.approx(
        sum(s.last or 0 for s in found.scores.values()) / 3
    )


def test_trained_numbers_are_counted(
    undisturbed: tuple[Path, StreamResult, tuple[str, ...]],
) -> None:
    lora, adapter, data, both = undisturbed[1].learned
    sides = 2 * world.SIDE * len(world.MODULES)
    assert (lora.lora, lora.own_lora, lora.heads) == (2 * sides, 2 * sides, 2 * 16 + 2)
    assert (adapter.steps, adapter.loss, adapter.heads) == (0, None, 0)
    assert (data.temporary, data.heads) == (sides, 3 * 16 + 3)
    assert 0 < data.coefficients < data.own_lora
    assert both.temporary == both.lora == 0
    assert both.coefficients > 0


def test_a_stream_learns(folder: Path) -> None:
    found = run(world.recipe(folder, world.DATA, world.MORE, max_steps=60))
    assert found.scores["colour"].last == pytest.approx(100, abs=10)
    assert found.scores["size"].last == pytest.approx(90, abs=15)
    assert found.measures["forgetting"] == pytest.approx(0, abs=5)


def test_a_task_of_a_stream_chooses_its_rate(folder: Path) -> None:
    lines = [line for line in world.HEAD.splitlines() if not line.startswith("learning_rate")]
    events: list[Event] = []
    recipe = world.recipe(folder, world.DATA, world.MORE, head="\n".join(lines), max_steps=20)
    run(recipe, observe=events.append)
    told = [event.text for event in events if "chosen from" in event.text]
    # The first task is a LoRA of its own, at lora_learning_rate.
    assert len(told) == 1
    assert told[0].startswith("size: learning rate ")


def test_a_stream_that_is_done_is_not_run_again(folder: Path, snapshot: Snapshot) -> None:
    recipe = world.recipe(folder, world.LEGAL, world.BOTH, **FEW)
    first = run(recipe)
    before = snapshot(folder)
    shutil.rmtree(folder / "data")
    shutil.rmtree(folder / "adapters")
    events: list[Event] = []
    again = run(recipe, observe=events.append)
    assert again.steps == first.steps
    assert {e.stage for e in events} == {"resumed"}
    after = snapshot(folder)
    assert after == {name: before[name] for name in after}


def test_training_data_may_vanish_after_its_task_is_merged(folder: Path) -> None:
    expected = run(world.recipe(folder, world.DATA, world.MORE, world.LEGAL, **FEW))
    shutil.rmtree(folder / "out.share")
    shutil.rmtree(folder / "out.share.run")

    def observe(event: Event) -> None:
        if event.stage == "committed" and event.task in ("colour", "size"):
            (folder / "data" / event.task / "train.jsonl").unlink()
            if event.task == "size":
                raise KeyboardInterrupt

    recipe = world.recipe(folder, world.DATA, world.MORE, world.LEGAL, **FEW)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, observe=observe)
    found = run(recipe)
    assert found.matrix == expected.matrix
    assert not found.notices
    assert found.steps[-1].content == expected.steps[-1].content


def test_a_score_is_missing_where_the_evaluation_data_is_gone(folder: Path) -> None:
    run(world.recipe(folder, world.DATA, **FEW))
    shutil.rmtree(folder / "data" / "colour")
    events: list[Event] = []
    found = run(world.recipe(folder, world.DATA, world.MORE, **FEW), observe=events.append)
    assert stages(events, "unscored") == ["colour"]
    assert found.matrix is not None
    assert found.matrix.scores[1][0] is None
    assert found.matrix.scores[1][1] is not None
    assert found.measures == {"acc": None, "bwt": None, "forgetting": None}
    assert "colour: not scored" in found.notices[0]
    assert found.scores["colour"].first is not None
    assert found.scores["colour"].last is None


def test_tasks_may_be_appended_and_nothing_else_changed(folder: Path, snapshot: Snapshot) -> None:
    run(world.recipe(folder, world.DATA, **FEW))
    before = snapshot(folder / "out.share")
    for change in ({"learning_rate": 1e-3}, {"seed": 7}, {"k": 5}, {"lora_rank": 1}):
        with pytest.raises(RecipeError, match="another recipe"):
            run(world.recipe(folder, world.DATA, **{**FEW, **change}))
    with pytest.raises(RecipeError, match=r"name: .* then"):
        run(world.recipe(folder, world.MORE, **FEW))
    assert snapshot(folder / "out.share") == before
    events: list[Event] = []
    recipe = world.recipe(folder, world.DATA, world.LEGAL, **FEW)
    found = run(recipe, observe=events.append)
    assert stages(events, "committed") == ["legal"]
    assert found.version == 2
    with pytest.raises(RecipeError, match="'legal' no longer there"):
        run(world.recipe(folder, world.DATA, **FEW))


def test_a_recipe_may_change_as_long_as_nothing_is_done(folder: Path) -> None:
    def stop(event: Event) -> None:
        if event.stage == "learning":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(world.recipe(folder, world.DATA, **FEW), observe=stop)
    assert run(world.recipe(folder, world.DATA, seed=3, **FEW)).version == 1


def test_initial_tasks_make_the_first_subspace_together(folder: Path) -> None:
    tasks = (world.DATA, world.BOTH, world.LEGAL, world.MORE)
    found = run(world.recipe(folder, *tasks, initial=3, variance=0.9, k=5, **FEW))
    assert [step.tasks for step in found.steps] == [("colour", "mood", "legal"), ("size",)]
    assert [one.how for one in found.learned] == ["lora", "both", "adapter", "data"]
    share = Share.load(folder / "out.share")
    assert share.model.settings.cap == 5
    assert all(max(layer.k) <= 5 for layer in share.model.layers.values())


def test_variance_alone_keeps_k_small_and_leaves_room(folder: Path) -> None:
    run(world.recipe(folder, world.LEGAL, variance=0.5, **FEW))
    first = Share.load(folder / "out.share", 1).model
    assert all(max(layer.k) < 6 for layer in first.layers.values())
    assert all(layer.cap == (6, 6) for layer in first.layers.values())


def test_share_full_trains_coefficients_again_and_no_other_task(folder: Path) -> None:
    extra: dict[str, Any] = {"finetune": True, "finetune_max_steps": 3, "k": 30, **FEW}
    found = run(world.recipe(folder, world.DATA, world.MORE, **extra))
    assert [one.steps for one in found.learned] == [5, 5]
    first, second = (Share.load(folder / "out.share", v) for v in (1, 2))
    for module, update in first.updates("colour").items():
        other = second.updates("colour")[module]
        assert torch.allclose(update.up @ update.down, other.up @ other.down, atol=1e-6)


def test_an_adapter_without_a_head_gets_one_with_its_data(folder: Path) -> None:
    task = "- {name: mood, data: data/mood, adapter: adapters/legal}\n"
    found = run(world.recipe(folder, world.DATA, task, **FEW))
    assert found.learned[1].heads == 2 * 16 + 2
    assert found.scores["mood"].last is not None


def test_data_that_only_scores_an_adapter(folder: Path) -> None:
    task = (
        "- {name: mood, data: data/mood/test.jsonl, adapter: adapters/mood, eval_only: true, "
        "labels: [class0, class1]}\n"
    )
    found = run(world.recipe(folder, task, **FEW))
    assert found.learned[0].how == "adapter"
    assert found.scores["mood"].last is not None


@pytest.mark.parametrize("keys", [{"start": "auto"}, {"start": "mean"}, {"phi": 0}])
def test_ways_to_start(folder: Path, keys: dict[str, Any]) -> None:
    found = run(world.recipe(folder, world.LEGAL, world.MORE, **{**FEW, **keys}))
    assert found.learned[1].start in ("zero", "mean", "legal")
    assert found.learned[1].steps == 2


def test_early_stopping_takes_the_best_state(folder: Path) -> None:
    keys: dict[str, Any] = {
        "early_stopping_patience": 1,
        "early_stopping_threshold": 50.0,
        "eval_steps": 1,
    }
    found = run(world.recipe(folder, world.LEGAL, world.MORE, start="auto", **keys))
    assert found.learned[1].steps == 2


def test_trackers_write_beside_the_share_model(folder: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    keys: dict[str, Any] = {
        "report_to": ["tensorboard"],
        "early_stopping_patience": 1,
        "eval_steps": 1,
        **FEW,
    }
    run(world.recipe(folder, world.DATA, **keys))
    place = folder / "out.share.run" / "trackers" / "colour"
    assert list(place.rglob("events.out.tfevents.*"))
    assert not list(place.glob("checkpoint-*"))


def test_epochs_are_steps(folder: Path) -> None:
    keys: dict[str, Any] = {
        "max_steps": -1,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 10,
    }
    found = run(world.recipe(folder, world.DATA, gradient_accumulation_steps=2, **keys))
    assert found.learned[0].steps == 2 * 3  # 48 rows: 5 batches, 3 steps an epoch


def test_regression_beside_classes(folder: Path) -> None:
    found = run(world.recipe(folder, world.MORE, world.VALUE, max_steps=60))
    assert found.scores["value"].metric == "pearson_spearman"
    assert (found.scores["value"].last or 0) > 60


def test_language_models_have_no_heads(folder: Path) -> None:
    world.make_gpt(folder / "gpt")
    rows = [{"ask": "w1 w2", "say": "w3 w4"}] * 16
    for name in ("one", "two"):
        world.write(folder / "data" / name / "train.jsonl", rows)
        world.write(folder / "data" / name / "test.jsonl", rows[:4])
    lines = [
        f"- {{name: {n}, data: data/{n}, prompt: ask, completion: say, metric: {m}}}\n"
        for n, m in (("one", "exact_match"), ("two", "perplexity"))
    ]
    keys: dict[str, Any] = {"base": "gpt", "task_type": "causal-lm", "target_modules": ["c_attn"]}
    found = run(world.recipe(folder, *lines, max_steps=40, learning_rate=5e-2, **keys))
    assert [one.heads for one in found.learned] == [0, 0]
    assert found.scores["one"].first == 100
    perplexity = found.scores["two"].last
    assert perplexity is not None
    assert 1 <= perplexity < 10
    assert found.matrix is not None
    assert found.matrix.last["two"] == -perplexity


def test_a_half_precision_store(folder: Path) -> None:
    found = run(world.recipe(folder, world.DATA, world.MORE, store_dtype="bfloat16", **FEW))
    assert Share.load(folder / "out.share").model.dtype == torch.bfloat16
    assert found.version == 2


def test_somebody_elses_commit_is_not_built_upon(folder: Path, snapshot: Snapshot) -> None:
    recipe = world.recipe(folder, world.LEGAL, **FEW)
    run(recipe)
    Share.load(folder / "out.share").merge([folder / "adapters" / "mood"]).save()
    before = snapshot(folder / "out.share")
    with pytest.raises(StoreConflictError, match="was not made by this stream"):
        run(recipe)
    assert snapshot(folder / "out.share") == before
    rollback(folder / "out.share", 1)
    assert run(recipe).version == 3


def test_a_rollback_is_gone_on_from(folder: Path) -> None:
    recipe = world.recipe(folder, world.DATA, world.LEGAL, world.MORE, **FEW)
    first = run(recipe)
    rollback(folder / "out.share", 1)
    events: list[Event] = []
    again = run(recipe, observe=events.append)
    assert stages(events, "committed") == ["legal", "size"]
    assert [s.content for s in again.steps] == [s.content for s in first.steps]


def test_a_share_model_of_no_stream_is_left_alone(folder: Path, snapshot: Snapshot) -> None:
    Share.from_adapters([folder / "adapters" / "legal"], k=4).save(folder / "out.share")
    before = snapshot(folder)
    with pytest.raises(StoreExistsError, match="no run of a recipe beside it"):
        run(world.recipe(folder, world.DATA))
    after = snapshot(folder)
    del after["recipe.yaml"]
    assert after == before


def test_damaged_records_are_named(folder: Path) -> None:
    recipe = world.recipe(folder, world.LEGAL, **FEW)
    run(recipe)
    record = folder / "out.share.run" / "steps" / "0001.json"
    for text in ("{", '{"number": 1}', "[]"):
        record.write_text(text)
        with pytest.raises(CorruptStoreError, match=r"0001\.json"):
            run(recipe)
    (folder / "out.share.run" / "stream.json").write_text("{}")
    with pytest.raises(CorruptStoreError, match="no record of a stream"):
        run(recipe)


def nan(folder: Path) -> None:
    """Weights of a diverged base model."""
    from safetensors.torch import load_file, save_file

    path = folder / "base" / "model.safetensors"
    tensors = {name: value * float("nan") for name, value in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})


def test_a_diverged_training_is_not_committed(folder: Path) -> None:
    nan(folder)
    with pytest.raises(SharespaceError):
        run(world.recipe(folder, world.DATA, **FEW))
    assert not (folder / "out.share").exists()
