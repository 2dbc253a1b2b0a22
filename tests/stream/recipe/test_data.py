"""Data of every kind: read, checked, chosen, encoded."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from sharespace.errors import RecipeError
from sharespace.stream.recipe import TaskData, TaskSpec, load_processor, load_task_data
from stream.recipe.recipes import TEXTS, task, write_rows, write_task

datasets: Any = pytest.importorskip("datasets")
FOLDERS = sorted(p.parent.name for p in TEXTS.glob("*/train.jsonl.gz"))


def why_not(spec: TaskSpec, tokenizer: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load_task_data(spec, tokenizer)
    (problem,) = caught.value.problems
    assert problem.startswith("line 4: task 'one', ")
    return problem


def batch(data: TaskData, count: int = 3) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = dict(data.collator([data.train[i] for i in range(count)]))
    return made


def test_a_folder_of_two_files(tmp_path: Path, tokenizer: Any) -> None:
    data = load_task_data(task(write_task(tmp_path)), tokenizer)
    assert (len(data.train), len(data.eval)) == (12, 4)
    assert (data.label_names, data.num_labels) == (("0", "1"), 2)
    assert data.problem_type == "single_label_classification"
    assert data.train["labels"][:4] == [0, 1, 0, 1]
    assert data.eval_rows["text"][1] == "the row 1 is good"
    made = batch(data)
    assert set(made) == {"input_ids", "attention_mask", "labels"}
    assert made["input_ids"].shape == (3, 5)


def test_batches_are_padded_to_their_own_longest_row(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": "a " * n, "label": n % 2} for n in (1, 2, 9)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", rows)
    data = load_task_data(task(tmp_path, max_length=6), tokenizer)
    assert batch(data, 2)["input_ids"].shape == (2, 2)
    assert batch(data, 3)["input_ids"].shape == (3, 6)
    assert batch(data, 2)["attention_mask"].tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize(
    "suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz"]
)
def test_formats_are_alike(tmp_path: Path, tokenizer: Any, suffix: str) -> None:
    rows = {"text": ["a b", 'c, "d"', "e\nf"], "label": ["no", "yes", "no"]}
    table = datasets.Dataset.from_dict(rows)
    path = tmp_path / f"train{suffix}"
    plain = path.with_suffix("") if suffix.endswith(".gz") else path
    if ".csv" in suffix or ".tsv" in suffix:
        table.to_csv(plain, index=False, sep="\t" if ".tsv" in suffix else ",")
    elif suffix == ".parquet":
        table.to_parquet(plain)
    else:
        table.to_json(plain)
    if plain != path:
        with gzip.open(path, "wb") as packed:
            packed.write(plain.read_bytes())
        plain.unlink()
    data = load_task_data(task(path, eval_fraction=0.3), tokenizer)
    assert data.label_names == ("no", "yes")
    both = [*zip(data.train["labels"], data.train["input_ids"], strict=True)]
    both += zip(data.eval["labels"], data.eval["input_ids"], strict=True)
    expected = [tokenizer(text)["input_ids"] for text in rows["text"]]
    assert sorted(both) == sorted(zip([0, 1, 0], expected, strict=True))


def test_no_copy_of_local_data_outlives_it(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strict streams: once a task is learned its data may be deleted, and is gone then."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", cache / "downloads")
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", cache / "extracted")
    folder = write_task(tmp_path / "data")
    data = load_task_data(task(folder), tokenizer)
    shutil.rmtree(folder)
    assert len(data.train["input_ids"]) == 12
    assert not list(cache.rglob("*"))


def test_a_split_that_is_not_used_may_be_anything(tmp_path: Path, tokenizer: Any) -> None:
    """The test splits of benchmarks have no labels."""
    (write_task(tmp_path) / "test.jsonl").rename(tmp_path / "validation.jsonl")
    (tmp_path / "test.jsonl").write_text("{broken")
    assert len(load_task_data(task(tmp_path), tokenizer).eval) == 4


def test_pairs(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": "a b", "text2": "c", "other": "d e", "label": i} for i in (0, 1)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", rows)
    found = load_task_data(task(tmp_path), tokenizer).train["input_ids"][0]
    assert found == tokenizer("a b", "c")["input_ids"]
    named = task(tmp_path, text="text2", text2="other")
    assert (
        load_task_data(named, tokenizer).train["input_ids"][0] == tokenizer("c", "d e")["input_ids"]
    )


def test_labels_by_name_number_and_file(tmp_path: Path, tokenizer: Any) -> None:
    write_task(tmp_path)
    named = load_task_data(task(tmp_path, labels=["bad", "good"]), tokenizer)
    assert named.label_names == ("bad", "good")
    assert named.train["labels"][:2] == [0, 1]
    (tmp_path / "labels.txt").write_text("schlecht\ngut\n")
    assert load_task_data(task(tmp_path), tokenizer).label_names == ("schlecht", "gut")
    assert load_task_data(task(tmp_path, labels=["1", "0"]), tokenizer).train["labels"][:2] == [
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["b", "a"], ("a", "b"), [1, 0]),
        ([10, 2], ("2", "10"), [1, 0]),
        ([1.0, 0.0], ("0", "1"), [1, 0]),
        ([True, False], ("False", "True"), [1, 0]),
    ],
)
def test_labels_that_nobody_named(
    tmp_path: Path, tokenizer: Any, labels: list[Any], names: tuple[str, ...], numbers: list[int]
) -> None:
    rows = [{"text": "a", "label": label} for label in labels]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", rows)
    data = load_task_data(task(tmp_path), tokenizer)
    assert (data.label_names, data.train["labels"][:]) == (names, numbers)


@pytest.mark.parametrize(
    ("train", "test", "keys", "why"),
    [
        ([0, 1], [0, 2], {}, "label: eval row 2 has 2, no class of 0, 1"),
        ([0, 1], [-1, -1], {}, "-1 often marks a split without labels"),
        ([0, 1], [0, None], {}, "label: eval row 2 has no label"),
        ([0, 0], [0, 0], {}, "label: 1 classes (0); at least 2 are needed"),
        (["a", "b"], ["a", "c"], {}, "label: eval row 2 has 'c', no class of a, b"),
        ([0, 2], [0, 0], {"labels": ["x", "y"]}, "train row 2 has 2, no class of x, y"),
        ([0.5, 1], [0, 1], {"labels": ["x", "y"]}, "train row 1 has 0.5, no class"),
        ([1, None], [1, 1], {"task_type": "regression"}, "train row 2 has None, no number"),
        (["1", "2"], ["1", "2"], {"task_type": "regression"}, "train row 1 has '1', no number"),
    ],
)
def test_labels_that_cannot_be(
    tmp_path: Path,
    tokenizer: Any,
    train: list[Any],
    test: list[Any],
    keys: dict[str, Any],
    why: str,
) -> None:
    for name, labels in (("train", train), ("test", test)):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": "a", "label": x} for x in labels])
    assert why in why_not(task(tmp_path, **keys), tokenizer)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"text": "txt"}, "no column 'txt', but text, label; did you mean text?"),
        ({"label": "class"}, "no column 'class'"),
        ({"text": "label"}, "column 'label' of the train split holds no texts (int64)"),
        ({"train_split": "training"}, "train_split: the data has no split 'training', but"),
        ({"eval_split": "dev"}, "eval_split: the data has no split 'dev', but test, train"),
        ({"data_config": "rte"}, "data_config: is for the Hub, but"),
        ({"data": "none.jsonl"}, "'none.jsonl' is no file, folder or data set on the Hub"),
        ({"data": "some/where"}, "neither a path that exists nor a data set that the Hub gives"),
        ({"eval_data": "."}, "eval_data: one file is wanted, not a folder"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit(
    tmp_path: Path, tokenizer: Any, keys: dict[str, Any], why: str
) -> None:
    assert why in why_not(task(write_task(tmp_path), **keys), tokenizer)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("x.jsonl", b"", "has no rows"),
        ("x.jsonl", b'{"text": "a", "label": 0}\n{"text": ', "cannot be read"),
        ("x.jsonl.gz", b"\x1f\x8bxx", "cannot be read"),
        ("x.parquet", b"PAR1", "cannot be read"),
        ("x.csv", b"\xff\xfe\x00\x01", "x.csv"),
        ("x.csv", b"text,label\n", "has no rows"),
        ("x.txt", b"a\nb\n", "has no column 'label'"),
        ("x.zip", b"PK", "has no file of a known format"),
        ("x.jsonl", b'{"text": null, "label": 0}\n{"text": "a", "label": 1}\n', "None in place"),
    ],
)  # fmt: skip
def test_files_that_are_broken(
    tmp_path: Path, tokenizer: Any, name: str, content: bytes, why: str
) -> None:
    (tmp_path / name).write_bytes(content)
    keys = {"eval_data": str(tmp_path / name), "labels": ["a", "b"]}
    found = why_not(task(tmp_path / name, **keys), tokenizer)
    assert why in found or (name == "x.csv" and "data: " in found)


def test_a_file_alone_needs_something_to_score_on(
    tmp_path: Path, tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_task(tmp_path)
    file = folder / "train.jsonl"
    assert "give eval_data, eval_split or eval_fraction" in why_not(task(file), tokenizer)
    held = load_task_data(task(file, eval_data=str(folder / "test.jsonl")), tokenizer)
    assert (len(held.train), len(held.eval)) == (12, 4)
    part = load_task_data(task(file, eval_fraction=0.25), tokenizer)
    assert (len(part.train), len(part.eval)) == (9, 3)
    rows = {*part.eval_rows["text"]}
    assert len(rows) == 3
    again = load_task_data(task(file, eval_fraction=0.25), tokenizer)
    assert {*again.eval_rows["text"]} == rows
    assert capfd.readouterr().err == ""  # No bars.


def test_data_that_only_scores(tmp_path: Path, tokenizer: Any) -> None:
    file = write_task(tmp_path) / "test.jsonl"
    keys: dict[str, Any] = {"adapter": "a", "eval_only": True}
    data = load_task_data(task(file, labels=["x", "y"], **keys), tokenizer)
    assert data.train is None
    assert len(data.eval) == 4
    assert "labels: needed" in why_not(task(file, **keys), tokenizer)


def test_examples_are_chosen_by_the_seed(tmp_path: Path, tokenizer: Any) -> None:
    spec = task(write_task(tmp_path, 40), max_train_examples=5, max_eval_examples=2)
    first = load_task_data(spec, tokenizer)
    assert (len(first.train), len(first.eval), len(first.eval_rows)) == (5, 2, 2)
    assert first.eval["input_ids"][0] == tokenizer(first.eval_rows["text"][0])["input_ids"]
    again = load_task_data(spec, tokenizer)
    assert again.train["labels"][:] == first.train["labels"][:]
    from dataclasses import replace

    other = [load_task_data(replace(spec, seed=s), tokenizer).train["labels"][:] for s in range(4)]
    assert len({tuple(o) for o in other}) > 1


def test_regression(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": "a", "label": x} for x in (0, 2.5, 5)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "dev.jsonl", rows)
    data = load_task_data(task(tmp_path, task_type="regression"), tokenizer)
    assert (data.problem_type, data.num_labels, data.label_names) == ("regression", 1, ())
    assert batch(data)["labels"].dtype == torch.float32
    assert batch(data)["labels"].tolist() == [0, 2.5, 5]


def test_causal_language_modelling(tmp_path: Path, tokenizer: Any) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text": "a b c d e", "q": "a b c", "r": "d e"}] * 2)
    write_rows(tmp_path / "test.jsonl", [{"text": "a", "q": "a", "r": "b"}])
    a, b, c, d, e = tokenizer("a b c d e")["input_ids"]
    end = tokenizer.eos_token_id
    whole = load_task_data(task(tmp_path, task_type="causal-lm"), tokenizer)
    assert whole.train[0]["labels"] == [a, b, c, d, e, end]
    keys: dict[str, Any] = {"task_type": "causal-lm", "prompt": "q", "completion": "r"}
    pairs = load_task_data(task(tmp_path, **keys), tokenizer)
    assert pairs.train[0]["input_ids"] == [a, b, c, d, e, end]
    assert pairs.train[0]["labels"] == [-100, -100, -100, d, e, end]
    assert pairs.eval_rows["r"][0] == "b"
    cut = load_task_data(task(tmp_path, max_length=4, **keys), tokenizer)
    assert cut.train[0]["input_ids"] == [c, d, e, end]
    mixed = pairs.collator([pairs.train[0], pairs.eval[0]])
    assert mixed["labels"][1].tolist() == [-100, b, end, -100, -100, -100]
    assert pairs.num_labels == 0
    assert pairs.problem_type is None


def test_images(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (10, 8), colour).save(folder / "1.png")
    processor = transformers.ViTImageProcessor(size={"height": 4, "width": 4})
    spec = task(tmp_path / "images", task_type="image-classification")
    data = load_task_data(spec, processor)
    assert data.label_names == ("blue", "red")
    made = batch(data, 2)
    assert made["pixel_values"].shape == (2, 3, 4, 4)
    assert made["labels"].tolist() == [0, 1]
    # Channels in the order red, green, blue, scaled from 0..255 to -1..1.
    assert made["pixel_values"][0, :, 0, 0].tolist() == [-1, -1, 1]


def test_a_processor_of_the_base_model(tmp_path: Path, tokenizer: Any) -> None:
    from sharespace.stream.recipe import parse_recipe
    from stream.recipe.recipes import HEAD

    text = HEAD.replace("bert-base", "base") + "tasks:\n- {name: a, adapter: b}\n"
    recipe = parse_recipe(text, tmp_path)
    with pytest.raises(RecipeError, match="base: 'base' has no tokenizer"):
        load_processor(recipe, "text-classification")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="[END]"
    ).save_pretrained(tmp_path / "base")
    loaded = load_processor(recipe, "text-classification")
    assert loaded.pad_token == "[END]"
    assert loaded("a b")["input_ids"] == tokenizer("a b")["input_ids"]


@pytest.mark.skipif(not FOLDERS, reason=f"no data sets in {TEXTS}")
@pytest.mark.parametrize("name", FOLDERS)
def test_real_data(name: str, tokenizer: Any) -> None:
    keys = {"max_train_examples": 64, "max_eval_examples": 32, "max_length": 64}
    data = load_task_data(task(TEXTS / name, **keys), tokenizer)
    assert (len(data.train), len(data.eval)) == (64, 32)
    written = [x for x in (TEXTS / name / "labels.txt").read_text().splitlines() if x]
    assert list(data.label_names) == written
    made = batch(data, 8)
    assert made["input_ids"].shape[1] <= 64
    assert int(made["labels"].max()) < data.num_labels
