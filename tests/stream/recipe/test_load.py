"""Reading recipes: values, overrides, and every mistake as one clear error."""

from __future__ import annotations

import pickle
import string
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sharespace.errors import RecipeError
from sharespace.learn import TrainingSettings
from sharespace.stream.recipe import (
    DataSettings,
    Recipe,
    SubspaceSettings,
    TaskSpec,
    load_recipe,
    parse_recipe,
)
from sharespace.stream.recipe.keys import DEFAULT_METRICS, METRICS
from sharespace.stream.recipe.load import ELSEWHERE, IN_TASK, TOP
from sharespace.stream.recipe.values import keys_of, texts_of
from stream.recipe.recipes import HEAD, parsed

TASK = "tasks:\n- name: one\n  data: one.jsonl\n"
GROUPS = (Recipe, TaskSpec, DataSettings, SubspaceSettings, TrainingSettings)


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, Path("folder"))
    return caught.value.problems


def test_what_is_left_out_has_its_default() -> None:
    recipe = parsed(TASK)
    assert recipe.base.text == "bert-base"
    assert recipe.share == Path("folder/out")
    (one,) = recipe.tasks
    assert (one.name, one.subspace, one.training) == ("one", SubspaceSettings(), TrainingSettings())
    assert one.data is not None
    assert one.data.path == Path("folder/one.jsonl")
    assert one.learns


def test_a_task_overrides_what_the_top_says() -> None:
    recipe = parsed(
        "p: 4\nlearning_rate: 1e-3\nmax_train_examples: 100\nseed: 7\n"
        + TASK
        + "- {name: two, data: two.csv, p: 2, learning_rate: 0.5, max_train_examples: null}\n"
    )
    one, two = recipe.tasks
    assert (one.subspace.p, one.training.learning_rate) == (4, 1e-3)
    assert (two.subspace.p, two.training.learning_rate) == (2, 0.5)
    assert (one.settings.max_train_examples, two.settings.max_train_examples) == (100, None)
    assert (one.seed, two.seed) == (7, 7)


def test_texts_are_what_is_written() -> None:
    """YAML 1.1 would make booleans, numbers and dates of these."""
    recipe = parsed("tasks:\n- name: 007\n  data: a.csv\n  labels: [yes, no, 1:30, 2024-01-01]\n")
    assert recipe.tasks[0].name == "007"
    assert recipe.tasks[0].labels == ("yes", "no", "1:30", "2024-01-01")


@pytest.mark.parametrize("text", ["1e-3", "0.001", ".001", "1.0E-03", "+1e-3"])
def test_numbers_as_people_write_them(text: str) -> None:
    assert parsed(f"learning_rate: {text}\n" + TASK).tasks[0].training.learning_rate == 1e-3


def test_a_word_may_stand_for_a_number() -> None:
    for text in ("", "learning_rate: auto\n", "learning_rate: 'auto'\n"):
        assert parsed(text + TASK).tasks[0].training.learning_rate == "auto"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("learning_rat: 1", "learning_rat: no such key; did you mean learning_rate?"),
        ("lora_r: 8", "lora_r: no such key; did you mean lora_rank?"),
        ("model_name_or_path: x", "no such key; did you mean base?"),
        ("zzzzzz: 1", "zzzzzz: no such key"),
        ("adapter: x", "adapter: belongs in a task"),
        ("p: two", "p: is 'two', but a whole number is wanted"),
        ("p: '2'", "leave out the quotes"),
        ("p: 2.5", "a whole number is wanted"),
        ("p: 0x10", "a whole number is wanted"),
        ("p: 1:30", "a whole number is wanted"),
        ("p: 0", "p: is 0, but it must be at least 1"),
        ("p: 33", "p: is 33, above k = 32"),
        ("p: 99999999999999999999999999", "a whole number is wanted"),
        ("k:", "k: is empty; leave it out for its default"),
        ("p: [1]", "p: is a list, but one value is wanted"),
        ("p: {a: 1}", "p: is a mapping, but one value is wanted"),
        ("p: !!python/object:os.system 1", "which is not read"),
        ("learning_rate: fast", "a number is wanted, or auto"),
        ("learning_rate: .nan", "a number is wanted"),
        ("learning_rate: 1e999", "a number is wanted"),
        ("learning_rate: 0", "it must be above 0"),
        ("warmup_ratio: 1", "at least 0 and below 1"),
        ("bf16: 1", "true or false is wanted"),
        ("bf16: 'true'", "true or false is wanted"),
        ("start: meen", "neither auto, zero, mean nor an earlier task; did you mean mean?"),
        ("metric: mse", "metric: mse is none of text-classification"),
        ("metric: acuracy", "did you mean accuracy?"),
        ("max_steps: 0", "max_steps=0: nothing would be trained"),
        ("max_steps: -2", "at least -1"),
        ("eval_steps: 5", "eval_steps: needs early_stopping_patience"),
        ("initial: 2", "initial: is 2, but there are 1 tasks"),
        ("prompt: a", "prompt, completion: both or none"),
        ("report_to: [wandb, wandb]", "has 'wandb' twice"),
        ("target_modules: [a, [b]]", "is a list, but one value is wanted"),
        ("target_modules: ['']", "has an empty text"),
        ('base_revision: "a\\0b"', "control characters"),
        ("[1]: 2", "a list or mapping is no key"),
        ("<<: {p: 1}", "a merge key"),
        ("base: again", "base: written twice, first in line 1"),
        ("eval_split: a\neval_fraction: 0.5", "only one of them"),
        ("bf16: true\nfp16: true", "bf16 and fp16: only one of them"),
    ],
)
def test_a_mistake_at_the_top(line: str, why: str) -> None:
    found = problems(HEAD + line + "\n" + TASK)
    assert len(found) == 1, found
    assert why in found[0]


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ("name: one", "data, adapter: at least one of them"),
        ("data: x.csv", "the key name is missing"),
        ("name:\n  data: x.csv", "name: is empty"),
        ("name: one\n  data: x.csv\n  base: y", "base: belongs at the top of the recipe"),
        ("name: one\n  data: x.csv\n  tasks: []", "tasks: belongs at the top of the recipe"),
        ("name: one\n  data: x.csv\n  dataset: y", "did you mean data?"),
        ("name: one\n  adapter: x\n  labels: [a, b]", "labels: needs data"),
        ("name: one\n  adapter: x\n  eval_only: true", "eval_only: needs both"),
        ("name: one\n  data: x.csv\n  labels: [a, a]", "has 'a' twice"),
        ("name: one\n  data: x.csv\n  labels: a", "at least 2 are needed"),
        ("name: one\n  data: x.csv\n  task_type: regression\n  labels: [a, b]", "has none"),
        ("name: one\n  data: x.csv\n  task_type: causal-lm\n  text2: a", "no pairs"),
        (
            "name: one\n  data: x.csv\n  task_type: causal-lm\n  metric: rouge_l",
            "rouge_l needs prompt and completion",
        ),
        ("just a text", "a mapping of keys is wanted"),
    ],
)
def test_a_mistake_in_a_task(task: str, why: str) -> None:
    found = problems(HEAD + f"tasks:\n- {task}\n")
    assert any(why in x and x.startswith("line ") for x in found), found


def test_all_problems_are_reported_with_their_lines() -> None:
    text = "share: out\np: two\nbf16: 3\ntasks:\n- name: a\n  phi: -1\n- nme: b\n"
    found = problems(text)
    lines = [problem.split(":")[0] for problem in found]
    assert lines == ["the recipe", "line 2", "line 3", "line 6", "line 7", "line 7"]
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, Path("folder"), Path("my.yaml"))
    assert str(caught.value).startswith(f"my.yaml: {len(found)} problems\n  - ")
    assert pickle.loads(pickle.dumps(caught.value)).problems == found  # noqa: S301


def test_two_tasks_of_one_name_are_refused() -> None:
    (why,) = problems(HEAD + TASK + "- name: one\n  data: b.csv\n")
    assert why == "line 6: task 'one', name: a task of that name is in line 4 already"


@pytest.mark.parametrize(
    "text",
    ["", "# nothing", "- a\n- b", "text", "a: b: c", "a: [1", "\t", "a: 1\n---\nb: 2", "*x",
     "&a [*a]", '"\\U00110000"', '"\\ud800": 1', "a: \x00", "!!map", "? ", "%YAML 9", "[" * 3000,
     HEAD + "tasks:", HEAD + "tasks: {}", HEAD + "tasks: [[]]", HEAD + "tasks: &a [*a]"],
)  # fmt: skip
def test_what_is_no_recipe_is_one_clear_error(text: str) -> None:
    found = problems(text)
    assert all(found)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"\xff\xfe\x00")
    large = tmp_path / "large.yaml"
    large.write_text("#" * 2_000_001)
    for path in (tmp_path / "none.yaml", tmp_path, bad, large):
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        assert str(path) in str(caught.value)


def test_a_file_is_read_and_its_folder_counts(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("\ufeff" + HEAD + TASK, encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.share == tmp_path / "out"
    assert recipe.file == tmp_path / "recipe.yaml"
    assert recipe.task("one") is recipe.tasks[0]
    assert recipe.task("two") is None


def test_a_source_is_local_where_there_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "user" / "adapter").mkdir(parents=True)
    recipe = parse_recipe(
        HEAD + "tasks:\n- {name: a, adapter: user/adapter}\n- {name: b, adapter: user/other@v1}\n"
        "- {name: c, data: none.jsonl}\n- {name: d, data: ../none}\n- {name: e, data: ~nobody/x}\n",
        tmp_path,
    )
    found = [t.adapter or t.data for t in recipe.tasks]
    assert [bool(s and s.is_local) for s in found] == [True, False, True, True, True]
    assert str(found[0]) == str(tmp_path / "user" / "adapter")
    assert str(found[1]) == "user/other@v1"


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("abp:-[]{}&*!|>'\"#%\n\t ,?~<1.\\@`é\x07"), max_size=60))
def test_any_text_is_a_recipe_or_one_error(text: str) -> None:
    for whole in (text, HEAD + text, HEAD + TASK + text):
        assert outcome(whole)


def outcome(text: str) -> str:
    """A fingerprint, or what the one error says; any other exception passes."""
    try:
        return parse_recipe(text, Path("folder")).fingerprint
    except RecipeError as error:
        return str(error)


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
NAMES = st.sampled_from(sorted({*TOP, *IN_TASK})) | st.text(string.ascii_lowercase, max_size=6)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=4), st.dictionaries(NAMES, VALUES, max_size=4))
def test_any_value_of_any_key_is_usable_or_one_error(
    top: dict[str, object], task: dict[str, object]
) -> None:
    head: dict[str, object] = {"base": "x", "share": "y"}
    whole = {**head, **top, "tasks": [{"name": "a", "data": "b.csv", **task}]}
    assert outcome(yaml.safe_dump(whole, allow_unicode=True))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(TOP)), st.data())
def test_a_slip_in_a_key_names_the_key(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name)))
    slipped = name[:at] + "q" + name[at:]
    found = problems(HEAD + f"{slipped}: 1\n" + TASK)
    assert f"{slipped}: no such key; did you mean " in found[0] or len(name) < 3


def test_every_key_is_documented_and_known_once() -> None:
    for group in GROUPS:
        texts = texts_of(group)
        assert all(texts.get(name, "").endswith(".") for name in keys_of(group)), group
    shared = [name for group in GROUPS[2:] for name in keys_of(group)]
    assert len(shared) == len(set(shared))
    assert not set(keys_of(Recipe)) & {*shared, *keys_of(TaskSpec)}
    assert not set(ELSEWHERE) & {*TOP, *IN_TASK}
    assert set(ELSEWHERE.values()) <= {*TOP, *IN_TASK, "tasks"}


def test_every_default_is_within_its_limits() -> None:
    for group in GROUPS:
        for key in keys_of(group).values():
            if isinstance(key.default, int | float) and not isinstance(key.default, bool):
                assert key.limits.allow(key.default), key
            if key.choices and key.default is not None:
                assert key.default in key.choices


def test_training_keys_are_those_of_transformers(tmp_path: Path) -> None:
    known = {f.name for f in fields(transformers.TrainingArguments)}
    own = {"early_stopping_patience", "early_stopping_threshold", "warmup_ratio"}
    own.add("head_learning_rate")
    assert set(keys_of(TrainingSettings)) - own <= known
    settings = TrainingSettings(
        learning_rate=1e-3, max_steps=100, use_cpu=True, gradient_checkpointing=True
    )
    made = settings.trainer_arguments()
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), **made)
    assert arguments.get_warmup_steps(100) == 6
    assert arguments.report_to == []
    assert arguments.gradient_checkpointing
    steps = TrainingSettings(learning_rate=1e-3, warmup_steps=10).trainer_arguments()
    assert steps["warmup_steps"] == 10
    assert "warmup_ratio" not in steps
    tracked = TrainingSettings(learning_rate=1e-3, report_to=("wandb",))
    assert tracked.trainer_arguments()["report_to"] == ["wandb"]


def test_metrics_are_those_that_can_be_measured() -> None:
    from sharespace.stream import metrics

    assert {m for known in METRICS.values() for m in known} == set(metrics.METRICS)
    assert all(metric in METRICS[kind] for kind, metric in DEFAULT_METRICS.items())
    assert all(DataSettings(task_type=kind).score == m for kind, m in DEFAULT_METRICS.items())
