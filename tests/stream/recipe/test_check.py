"""Everything that a recipe names is there, or every lack of it is reported at once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sharespace.errors import RecipeError
from sharespace.formats import PlainLora, write_adapter
from sharespace.stream.recipe import Recipe, check, parse_recipe
from sharespace.subspace.adapter import BaseModel, LayerUpdate
from stream.recipe.recipes import TEXTS, write_rows, write_task

SMALL = ("cb", "copa", "rte", "wic")
FOLDERS = [TEXTS / name for name in SMALL if (TEXTS / name / "train.jsonl.gz").exists()]
TASKS = """
- {name: one, data: one}
- {name: two, adapter: two}
- {name: both, data: one, adapter: two}
"""


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A base model's config, a task's data, and an adapter."""
    transformers.BertConfig(max_position_embeddings=512).save_pretrained(tmp_path / "base")
    write_task(tmp_path / "one")
    write_lora(tmp_path / "two", rows=6)
    return tmp_path


def write_lora(path: Path, rows: int, base: str | None = None) -> None:
    updates = {"layer.q": LayerUpdate(torch.ones(rows, 2), torch.ones(2, 4))}
    write_adapter(path, PlainLora(updates, base=BaseModel(base), config={"peft_type": "LORA"}))


def recipe(folder: Path, tasks: str, more: str = "") -> Recipe:
    return parse_recipe(f"base: base\nshare: out\n{more}\ntasks:{tasks}", folder)


def problems(found: Recipe) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        check(found)
    return caught.value.problems


def test_what_is_found_is_told(desk: Path) -> None:
    seen: list[str] = []
    one, two, both = check(recipe(desk, TASKS), progress=seen.append)
    assert (one.train, one.eval, one.inputs, one.labels) == (12, 4, ("text",), ("0", "1"))
    assert (one.modules, two.modules, both.modules) == (None, 1, 1)
    assert (two.train, two.eval, both.train) == (None, None, 12)
    assert seen == ["one", "two", "both"]
    assert not (desk / "out").exists()


def test_all_that_is_missing_is_reported_at_once(desk: Path) -> None:
    tasks = TASKS + "- {name: a, data: none.csv}\n- {name: b, data: one, adapter: ./none}\n"
    tasks += "- {name: c, data: one, label: klass}\n"
    shutil.rmtree(desk / "base")
    found = problems(recipe(desk, tasks))
    assert "base: 'base' has no config" in found[0]
    assert "'none.csv' is no file" in found[1]
    assert found[1].startswith("line 8: task 'a', data: ")
    assert found[2].startswith("line 9: task 'b', adapter: ")
    assert "no column 'klass'" in found[3]
    assert len(found) == 4


def test_texts_longer_than_the_base_model_takes_are_refused(desk: Path) -> None:
    one = "\n- {name: one, data: one}\n"
    (why,) = problems(recipe(desk, one, "max_length: 600"))
    assert why.endswith("max_length: is 600, but the base model has 512 positions")


def test_null_texts_and_labels_are_found_in_every_row(desk: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": "a", "label": 0}, {"text": None, "label": 1}]
    write_rows(desk / "one" / "test.jsonl", rows)
    (why,) = problems(recipe(desk, "\n- {name: one, data: one}\n"))
    assert "column 'text' has a row with None" in why


def test_adapters_of_other_models_are_refused(desk: Path) -> None:
    write_lora(desk / "other", rows=7)
    (why,) = problems(recipe(desk, TASKS + "- {name: other, adapter: other}\n"))
    assert "'other'" in why
    assert "layer.q" in why
    shutil.rmtree(desk / "other")
    write_lora(desk / "other", rows=6, base="somebody/else")
    (why,) = problems(recipe(desk, TASKS + "- {name: other, adapter: other}\n"))
    assert "somebody/else" in why


def test_what_is_done_may_be_gone(desk: Path) -> None:
    """Strict: after a task is merged its data path may vanish."""
    before = recipe(desk, TASKS)
    shutil.rmtree(desk / "one")
    assert [c.name for c in check(before, done=("one", "both"))] == ["two"]
    assert len(problems(before)) == 2
    assert recipe(desk, TASKS).fingerprint == before.fingerprint


@pytest.mark.skipif(not FOLDERS, reason=f"no data sets in {TEXTS}")
def test_real_data(desk: Path) -> None:
    tasks = "".join(f"\n- {{name: {p.name}, data: {p}}}" for p in FOLDERS)
    found = {c.name: c for c in check(recipe(desk, tasks))}
    assert set(found) == {p.name for p in FOLDERS}
    assert all((c.train or 0) > 100 and (c.eval or 0) > 50 for c in found.values())
    pairs = {name for name, c in found.items() if len(c.inputs) == 2}
    assert pairs == {"rte", "cb"} & set(found)
