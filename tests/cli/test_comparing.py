"""``sharespace compare``: Share beside other methods on a recipe's tasks, from the shell."""

from __future__ import annotations

import csv
import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from cli.conftest import Ran
from sharespace.compare import Outcome, Workbench, compare_recipe, compared, recipe_comparison
from sharespace.compare.recipe_comparison import best_factor
from sharespace.learn.automatic import BASE_RATES
from sharespace.stream.recipe import load_recipe
from stream import world

Run = Callable[..., Ran]

TASKS = (world.DATA, world.MORE)
METHODS = "lora,head,share,mean"


@pytest.fixture(autouse=True, scope="module")
def nothing_to_collect() -> Iterator[None]:
    """Trainer collects garbage after each training: a second of all that was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets: Any = pytest.importorskip("datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    world.make(tmp_path)
    return tmp_path


def test_one_table_a_csv_file_and_a_figure_and_the_python_door_has_the_same(
    run: Run, folder: Path
) -> None:
    recipe = world.recipe(folder, *TASKS, max_steps=12)
    said = run(
        *("compare", recipe, "--methods", METHODS, "--rates", "1"),
        *("--csv", folder / "runs" / "table.csv"),
    )
    assert said.code == 0
    for word in ("per_task_lora", "share_strict", "mean_adapter", "forgetting", "gain retained"):
        assert word in said.out
    assert "out.share is not written" in said.out
    assert not (folder / "out.share").exists()
    results = folder / "out.share.compare"
    assert (results / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "| share_strict |" in (results / "comparison.md").read_text()
    with (folder / "runs" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == [
        "per_task_lora",
        "head_only",
        "share_strict",
        "mean_adapter",
    ]
    for row in rows:
        of_tasks = [float(row["colour"]), float(row["size"])]
        assert float(row["score"]) == pytest.approx(sum(of_tasks) / 2)
    assert float(rows[0]["gain_retained"]) == 1
    assert float(rows[0]["numbers_trained"]) == 4 * 2 * (world.SIDE + world.SIDE)

    again = run("compare", recipe, "--methods", METHODS, "--rates", "1")
    assert again.err.count("seed 0 is there already") == len(rows)
    assert again.out == said.out
    door = compare_recipe(recipe, METHODS.split(","), rates=[1])
    printed = run("compare", recipe, "--methods", METHODS, "--rates", "1", "--json").json
    assert printed == json.loads(json.dumps(door.to_record()))


def test_every_rate_is_tried_where_it_was_held_out_and_the_best_is_taken(
    run: Run, folder: Path
) -> None:
    recipe = world.recipe(folder, *TASKS, max_steps=24)
    # At the smallest rate nothing is learned, at the largest the numbers overflow.
    asked = ("compare", recipe, "--methods", "lora,share", "--rates", "1e-6,1,1e30", "--json")
    rates = run(*asked).json["rates"]
    assert set(rates) == {"per_task_lora", "share_strict"}
    for chosen in rates.values():
        assert set(chosen["tried"]) | set(chosen["dropped"]) == {"1e-06", "1", "1e+30"}
        assert chosen["factor"] == 1
        assert chosen["rate"] == pytest.approx(2e-2)


def test_an_automatic_rate_is_tried_from_where_its_search_begins(run: Run, folder: Path) -> None:
    recipe = world.recipe(folder, world.DATA, world.MORE, learning_rate="auto", max_steps=2)
    rates = run("compare", recipe, "--methods", "share", "--rates", "2", "--json").json["rates"]
    form = load_recipe(recipe).tasks[0].subspace.form
    assert rates["share_strict"]["rate"] == 2 * BASE_RATES[form]


def test_a_comparison_that_was_stopped_goes_on(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = world.recipe(folder, *TASKS, max_steps=3)
    asked = ("compare", recipe, "--methods", "lora,share", "--rates", "1")
    whole = run(*asked, "--out", folder / "whole")
    share = compared.method("share_strict")

    def stopped(_: Workbench) -> Outcome:
        raise KeyboardInterrupt

    methods = {**compared.all_methods(), share.name: replace(share, learn=stopped)}
    with monkeypatch.context() as patch:
        patch.setattr(compared, "_METHODS", methods)
        first = run(*asked)
    assert first.code == 130
    files = {path.name for path in (folder / "out.share.compare" / "seed-0").glob("*.json")}
    assert files == {"per_task_lora.json"}
    last = run(*asked)
    assert last.code == 0
    assert "per_task_lora: seed 0 is there already" in last.err
    assert _scores(last.out) == _scores(whole.out)


def _scores(table: str) -> list[list[str]]:
    """Method, score, forgetting, gain retained; not the seconds."""
    lines = [line.split() for line in table.splitlines()]
    return [words[:4] for words in lines if words and words[0] in compared.all_methods()]


def test_seeds_and_methods_are_added_later(run: Run, folder: Path) -> None:
    recipe = world.recipe(folder, world.DATA, max_steps=2)
    run("compare", recipe, "--methods", "head", "--rates", "1")
    both = run("compare", recipe, "--methods", "head,osf", "--rates", "1", "--seeds", 2, "--json")
    rows = [(row["method"], row["seed"]) for row in both.json["rows"]]
    assert rows == [("head_only", 0), ("osf", 0), ("head_only", 1), ("osf", 1)]


@pytest.mark.parametrize(
    ("tasks", "keys", "options", "message"),
    [
        ((world.DATA, world.LEGAL), {}, (), "task 'legal', adapter: the other methods learn"),
        ((world.DATA,), {"early_stopping_patience": 1}, (), "would stop by the examples"),
        ((world.DATA, world.MORE.replace("}", ", p: 2}")), {}, (), "task 'size', p: is not that"),
        (TASKS, {}, ("--methods", "shar"), "method 'shar': is not known. Choose one of head, lora"),
        (TASKS, {}, ("--seeds", "0"), "must be at least 1"),
        (TASKS, {}, ("--rates", "0,1"), "must be above 0"),
        (TASKS, {}, ("--rates", "fast"), "no list of numbers"),
        (TASKS, {"target_modules": ["word_embeddings"]}, ("--methods", "lora"), "is an embedding"),
    ],
)
def test_what_cannot_be_compared_is_one_message(
    run: Run,
    folder: Path,
    tasks: tuple[str, ...],
    keys: dict[str, Any],
    options: tuple[str, ...],
    message: str,
) -> None:
    said = run("compare", world.recipe(folder, *tasks, **keys), *options)
    assert (said.code, said.out) == (2, "")
    errors = [line for line in said.err.splitlines() if line.startswith("sharespace: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (folder / "out.share.compare").exists()


def test_another_recipe_is_refused_in_the_same_folder(run: Run, folder: Path) -> None:
    run("compare", world.recipe(folder, *TASKS), "--methods", "head", "--rates", "1")
    said = run("compare", world.recipe(folder, *TASKS, p=2), "--methods", "head", "--rates", "1")
    assert said.code == 2
    assert "p: 3 then, 2 now" in said.err
    said = run("compare", world.recipe(folder, *TASKS), "--methods", "head", "--rates", "2")
    assert "has the rates [1.0], not [2.0]" in said.err


def test_a_method_that_the_model_cannot_have_is_marked_or_refused(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make_gpt(folder / "base")
    task = "- {name: colour, data: data/colour}\n"
    recipe = world.recipe(folder, task, target_modules=["c_attn"], max_steps=2)
    refused = run("compare", recipe, "--methods", "lora,osf", "--rates", "1")
    assert refused.code == 2
    assert "method 'osf': it adapts linear modules only" in refused.err
    assert not (folder / "out.share.compare").exists()
    monkeypatch.setattr(recipe_comparison, "METHODS", ("head_only", "osf"))
    marked = run("compare", recipe, "--rates", "1")
    assert marked.code == 0
    assert "osf: not for this model: it adapts linear modules only" in marked.out


def test_tasks_of_different_measures_weigh_the_same() -> None:
    tried = {
        "0.25": {"accuracy": 90.0, "loss": -0.9},
        "1": {"accuracy": 89.0, "loss": -0.1},
        "4": {"accuracy": 50.0, "loss": -0.2},
    }
    assert best_factor(tried) == 1
    assert best_factor({"1": {"a": 5.0}, "0.5": {"a": 5.0}}) == 0.5


def test_help_is_in_plain_words(run: Run) -> None:
    said = run("compare", "--help")
    assert said.code == 0
    assert "Train Share and other methods on a recipe's tasks" in said.out
