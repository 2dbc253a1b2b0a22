"""A recipe's router: made while data is at hand, scored at the end, kept through kills."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sharespace.errors import CorruptStoreError, RecipeError
from sharespace.route import Router
from sharespace.store import rollback
from sharespace.stream import Event, RouterResult, StreamResult, run
from sharespace.stream.folder import RunFolder
from sharespace.stream.learning import Workshop
from sharespace.stream.models import BaseModels
from sharespace.stream.recipe import load_recipe, load_task_data
from sharespace.stream.routing import base_features, features_for_router
from stream import world

FEW: dict[str, Any] = {"max_steps": 2, "router": True}
Undisturbed = tuple[Path, StreamResult, tuple[str, ...]]


def shop_of(path: Path) -> Workshop:
    recipe = load_recipe(path)
    return Workshop(recipe, RunFolder(recipe), BaseModels(recipe), lambda _: None)


def test_it_knows_the_tasks_that_had_training_data(undisturbed: Undisturbed) -> None:
    path, result, stages = undisturbed
    found = result.router
    assert found is not None
    assert found.path == path.with_name("out.share.run") / "router.safetensors"
    assert found.bytes == found.path.stat().st_size
    assert found.tasks == ("colour", "size", "mood")
    assert tuple(Router.load(found.path).tasks) == found.tasks
    assert [t for t in found.notices if "the router sends nothing to it" in t] == [
        text for text in result.notices if text.startswith("legal: ")
    ]
    assert stages[-1] == "routed mood"


def test_scores_stand_beside_the_oracle(undisturbed: Undisturbed) -> None:
    found, scores = undisturbed[1].router, undisturbed[1].scores
    assert found is not None
    for name, one in found.scores.items():
        assert one.oracle == pytest.approx(scores[name].last)  # accuracy is its metric too
        assert one.class_incremental is not None
        assert one.routed is not None
        assert one.class_incremental <= min(one.routed, one.routing)
        assert one.fallback <= 100 - one.routing + 1e-9
        assert one.routing > 60  # 33 by chance: each task has words of its own
    assert found.means["routing"] == pytest.approx(
        sum(s.routing for s in found.scores.values()) / 3
    )
    assert RouterResult.from_record(json.loads(json.dumps(found.to_record())), found.path) == found


def test_scores_are_those_of_the_router_file_on_the_base_model(folder: Path) -> None:
    path = world.recipe(folder, world.DATA, world.MORE, **FEW)
    found = run(path).router
    assert found is not None
    shop, router = shop_of(path), Router.load(found.path)
    for name in ("colour", "size"):
        spec = shop.recipe.task(name)
        assert spec is not None
        data = load_task_data(spec, shop.processor(spec))
        sent = router.route(base_features(shop, spec, data, data.eval)).tasks
        assert found.scores[name].routing == pytest.approx(100 * sent.count(name) / len(sent))


def test_the_margin_gives_up_its_rate_of_held_out_examples(folder: Path) -> None:
    path = world.recipe(folder, world.DATA, world.MORE, **FEW)
    found = run(path).router
    assert found is not None
    assert found.fallback_rate == 0.05
    shop, router = shop_of(path), Router.load(found.path)
    held = []
    for spec in shop.recipe.tasks:
        features = features_for_router(shop, spec, load_task_data(spec, shop.processor(spec)))
        held.append(features.held_out)
        assert len(features.held_out) + features.statistics.count == 48
        assert torch.equal(router.tasks[spec.name].scatter, features.statistics.scatter)
    margins = router.route(torch.cat(held)).margins
    assert found.margin == pytest.approx(float(margins.min()))  # 0.05 of 10 is none


def test_training_data_may_vanish_and_other_kinds_of_tasks_are_routed(folder: Path) -> None:
    recipe = world.recipe(folder, world.MORE, world.VALUE, **FEW)

    def observe(event: Event) -> None:
        if event.stage == "committed":
            (folder / "data" / event.task / "train.jsonl").unlink()

    found = run(recipe, observe=observe).router
    assert found is not None
    size, value = found.scores["size"], found.scores["value"]
    assert (value.oracle, value.routed, size.class_incremental) == (None, None, None)
    assert size.oracle is not None
    assert value.routing > 60
    assert found.means["class_incremental"] is None


def test_a_language_model_is_routed_by_its_prompts(folder: Path) -> None:
    world.make_gpt(folder / "gpt")
    for name, ask in (("one", "w1 w2"), ("two", "w7 w8")):
        rows = [{"ask": ask, "say": "w3 w4"}] * 12
        world.write(folder / "data" / name / "train.jsonl", rows)
        world.write(folder / "data" / name / "test.jsonl", rows[:4])
    lines = [
        f"- {{name: {n}, data: data/{n}, prompt: ask, completion: say}}\n" for n in ("one", "two")
    ]
    keys: dict[str, Any] = {"base": "gpt", "task_type": "causal-lm", "target_modules": ["c_attn"]}
    path = world.recipe(folder, *lines, **keys, **FEW)
    found = run(path).router
    assert found is not None
    assert [s.routing for s in found.scores.values()] == [100, 100]
    shop = shop_of(path)
    spec = shop.recipe.tasks[0]
    data = load_task_data(spec, shop.processor(spec))
    answered = data.eval.map(lambda row: {**row, "input_ids": [*row["input_ids"][:-1], 9]})
    same = (base_features(shop, spec, data, rows) for rows in (data.eval, answered))
    assert torch.equal(*same), "the answer is not looked at"


def test_one_step_more_makes_it_anew_and_a_rollback_too(folder: Path) -> None:
    two, three = (world.DATA, world.MORE), (world.DATA, world.MORE, world.LEGAL)
    first = run(world.recipe(folder, *two, **FEW)).router
    again = run(world.recipe(folder, *two, **FEW)).router
    assert again == first
    more = run(world.recipe(folder, *three, **FEW))
    assert more.router is not None
    assert first is not None
    assert more.router.tasks == first.tasks
    assert any(text.startswith("legal: ") for text in more.router.notices)
    rollback(folder / "out.share", 1)
    assert run(world.recipe(folder, *three, **FEW)).router == more.router


def test_missing_evaluation_data_is_told(folder: Path) -> None:
    recipe = world.recipe(folder, world.DATA, world.MORE, **FEW)
    run(recipe)
    (folder / "out.share.run" / "router.json").unlink()
    shutil.rmtree(folder / "data" / "size")
    found = run(recipe).router
    assert found is not None
    assert set(found.scores) == {"colour"}
    assert found.tasks == ("colour", "size")
    assert any(t.startswith("size: not routed, its evaluation data is") for t in found.notices)


def test_it_cannot_be_asked_for_later(folder: Path) -> None:
    run(world.recipe(folder, world.DATA, **{**FEW, "router": False}))
    with pytest.raises(RecipeError, match="router: false then, true now"):
        run(world.recipe(folder, world.DATA, **FEW))


def test_damaged_files_are_named(folder: Path) -> None:
    recipe = world.recipe(folder, world.DATA, **FEW)
    run(recipe)
    place = folder / "out.share.run"
    (place / "router.json").write_text("[]")
    with pytest.raises(CorruptStoreError, match=r"router\.json: no record of a router"):
        run(recipe)
    (place / "router.json").unlink()
    (features,) = (place / "features").iterdir()
    features.write_bytes(features.read_bytes() + b"x")
    with pytest.raises(CorruptStoreError, match="its bytes changed"):
        run(recipe)
    features.unlink()
    with pytest.raises(CorruptStoreError, match="missing"):
        run(recipe)
