"""What cannot be run is refused before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharespace.errors import RecipeError
from sharespace.stream import run
from stream import world

HEADLESS = (
    "- {name: legal, adapter: adapters/legal, data: data/mood, eval_only: true, "
    "labels: [class0, class1]}\n"
)
CASES = {
    "modules that are not there": ((world.DATA,), {"target_modules": ["nothing"]}, "nothing"),
    "no head to score with": ((HEADLESS,), {}, "no head to score with"),
    "a head of another size": (
        ("- {name: mood, data: data/size, adapter: adapters/mood}\n",),
        {},
        r"is \(2, 16\), the data needs \(3, 16\)",
    ),
    "an adapter of another base": (
        ("- {name: wide, adapter: adapters/wide}\n",),
        {},
        r"task 'wide', adapter: .* but the update is 24x24",
    ),
    "modules of another architecture": (
        ("- {name: odd, adapter: adapters/odd}\n",),
        {},
        "not in this model",
    ),
    "a missing adapter": (("- {name: gone, adapter: adapters/gone}\n",), {}, "gone"),
    "missing data": ((world.LEGAL, "- {name: gone, data: data/gone}\n"), {}, "gone"),
    "a wrong column": ((world.DATA,), {"text": "txt"}, "did you mean text"),
    "an unknown key": ((world.DATA,), {"learning_rat": 1}, "did you mean learning_rate"),
    "a base that is not there": ((world.DATA,), {"base": "nowhere"}, "nowhere"),
    "a router without inputs": ((world.LEGAL,), {"router": True}, "no task has data to learn from"),
}


@pytest.mark.parametrize(("tasks", "keys", "message"), CASES.values(), ids=CASES)
def test_refused_and_nothing_is_written(
    folder: Path,
    snapshot: Callable[[Path], dict[str, bytes]],
    tasks: tuple[str, ...],
    keys: dict[str, Any],
    message: str,
) -> None:
    world.make_adapter(folder / "adapters" / "wide", 3, side=24)
    world.make_adapter(folder / "adapters" / "odd", 4, modules=["gpt.h.0.attn"])
    recipe = world.recipe(folder, *tasks, **keys)
    before = snapshot(folder)
    with pytest.raises(RecipeError, match=message):
        run(recipe)
    assert snapshot(folder) == before
    assert not (folder / "out.share.run").exists()


def test_a_later_task_is_checked_before_the_first_is_learned(folder: Path) -> None:
    recipe = world.recipe(folder, world.DATA, world.LEGAL, world.MORE, max_steps=2)
    shutil.rmtree(folder / "data" / "size")
    with pytest.raises(RecipeError, match="size"):
        run(recipe)
    assert not (folder / "out.share").exists()


def test_problems_of_several_tasks_are_told_at_once(folder: Path) -> None:
    world.make_adapter(folder / "adapters" / "odd", 4, modules=["gpt.h.0.attn"])
    recipe = world.recipe(folder, HEADLESS, "- {name: odd, adapter: adapters/odd}\n")
    with pytest.raises(RecipeError) as refused:
        run(recipe)
    assert len(refused.value.problems) == 2
