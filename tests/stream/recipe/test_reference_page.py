"""docs/reference/recipe.md is what the code says, and its example is a recipe."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from sharespace.stream.recipe import parse_recipe
from sharespace.stream.recipe.load import IN_TASK, TOP

REFERENCE = Path(__file__).resolve().parents[3] / "docs" / "reference"
PAGE = (REFERENCE / "recipe.md").read_text(encoding="utf-8")


def test_the_page_is_in_sync() -> None:
    script = REFERENCE / "generate_recipe.py"
    assert runpy.run_path(str(script))["reference"]() == PAGE, f"run: python {script}"


def test_the_page_has_every_key_once() -> None:
    found = re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)
    assert len(found) == len(set(found))
    assert set(found) == {*TOP, *IN_TASK, "tasks"}


def test_the_example_is_a_recipe() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    recipe = parse_recipe(text, Path("folder"))
    assert [t.name for t in recipe.tasks] == ["sst2", "legal", "rte", "stsb"]
    assert recipe.tasks[2].training.num_train_epochs == 60
    assert recipe.tasks[3].settings.score == "pearson_spearman"
