"""The fingerprint, and which recipes may go on with a stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sharespace.errors import RecipeError
from sharespace.stream.recipe import parse_recipe, record, refuse_other
from stream.recipe.recipes import HEAD, parsed

TASKS = "tasks:\n- {name: one, data: one.csv}\n- {name: two, adapter: two}\n"


def stored(text: str) -> Any:
    """The record as a stream finds it again."""
    return json.loads(json.dumps(record(parsed(text))))


def test_the_fingerprint_does_not_depend_on_order_place_or_spelling(tmp_path: Path) -> None:
    first = parsed("p: 4\nlearning_rate: 1e-3\n" + TASKS)
    texts = (
        HEAD + TASKS + "learning_rate: 0.001\np: 4\n",
        HEAD + "# a remark\nlearning_rate: 1.0e-3\np: 4\nlora_rank: 8\n" + TASKS,
        HEAD + "learning_rate: 1e-3\ntasks:\n- {data: one.csv, p: 4, name: one}\n"
        "- {name: two, adapter: two, p: 4}\n",
        "share: elsewhere\nbase: bert-base\nreport_to: wandb\np: 4\nlearning_rate: 1e-3\n" + TASKS,
    )
    for text in texts:
        assert parse_recipe(text, tmp_path).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    "text",
    [
        "p: 5\n" + TASKS,
        "seed: 1\n" + TASKS,
        "initial: 2\n" + TASKS,
        TASKS + "- {name: three, adapter: three}\n",
        TASKS.replace("one.csv", "other.csv"),
        TASKS.replace("adapter: two", "adapter: two, labels: null, phi: 0"),
    ],
)
def test_the_fingerprint_changes_with_what_changes_results(text: str) -> None:
    assert parsed(text).fingerprint != parsed(TASKS).fingerprint


def test_the_same_recipe_and_appended_tasks_go_on() -> None:
    before = stored(TASKS)
    for text in (
        TASKS,
        TASKS + "- {name: three, adapter: three}\n",
        "logging_steps: 7\n" + TASKS,
    ):
        refuse_other(parsed(text), before)


def test_other_recipes_are_refused_and_every_difference_is_named() -> None:
    changed = TASKS.replace("name: two, adapter: two", "name: zwei, adapter: two, phi: 3")
    with pytest.raises(RecipeError, match="append tasks") as caught:
        refuse_other(parsed("variance: 0.9\n" + changed), stored(TASKS))
    assert caught.value.problems == (
        "variance: null then, 0.9 now",
        'task \'two\', name: "two" then, "zwei" now',
        "task 'two', phi: null then, 3 now",
    )


def test_tasks_may_not_be_taken_away_or_put_in_front() -> None:
    with pytest.raises(RecipeError, match="tasks: 'two' no longer there"):
        refuse_other(parsed("tasks:\n- {name: one, data: one.csv}\n"), stored(TASKS))
    front = TASKS.replace("tasks:\n", "tasks:\n- {name: new, adapter: new}\n")
    with pytest.raises(RecipeError):
        refuse_other(parsed(front), stored(TASKS))


def test_tasks_that_are_not_done_may_change() -> None:
    changed = TASKS.replace("adapter: two", "adapter: other")
    refuse_other(parsed(changed), stored(TASKS), done=1)
    with pytest.raises(RecipeError):
        refuse_other(parsed(changed), stored(TASKS), done=2)


def test_a_key_of_a_later_release_must_have_its_default() -> None:
    before = stored(TASKS)
    del before["tasks"][0]["phi"], before["recipe"]["router"]
    refuse_other(parsed(TASKS), before)
    with pytest.raises(RecipeError, match="phi: null then, 3 now"):
        refuse_other(parsed(TASKS.replace("one.csv", "one.csv, phi: 3")), before)


def test_a_key_that_is_gone_is_named() -> None:
    before = stored(TASKS)
    before["recipe"]["magic"] = 7
    with pytest.raises(RecipeError, match="magic: 7 then; this release has no such key"):
        refuse_other(parsed(TASKS), before)
