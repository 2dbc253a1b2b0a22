"""Tiny stand-ins for roberta-base and GLUE: the same files, columns, labels and metrics.

    python -m experiments standins glue FOLDER

A RoBERTa of two layers with random weights, a tokenizer of its kind trained on the stand-in texts,
six data sets, and the two recipes, changed only to point there and to stop after a few steps.
Scores on them mean nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.harness import standins
from sharespace.extras import require
from sharespace.learn.training import quiet

HERE = Path(__file__).parent
RECIPES = ("strict.yaml", "full.yaml")
CHANGES: dict[str, Any] = {
    "base": "base",
    "max_length": 48,
    "max_steps": 4,
    "finetune_max_steps": 2,
    "per_device_train_batch_size": 8,
    "use_cpu": True,
}
SPLITS = {"train": 48, "validation": 24, "test": 8}
LENGTH = 64
"""Tokens that the tokenizer gives at most; two positions more are RoBERTa's own."""
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

_NAMES = ["Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jo", "Kim", "Leo"]
_VERBS = ["sees", "likes", "meets", "calls", "helps", "finds", "knows", "hears"]
_THINGS = ["cat", "dog", "film", "book", "song", "house", "river", "train", "garden", "letter"]
_MOODS = (("dull", "bad", "slow", "sad"), ("good", "bright", "funny", "warm"))

Example = dict[str, Any]


def make(folder: Path) -> None:
    """``base``, ``data/<task>`` and both recipes."""
    require("datasets", "train")  # quiet silences what is imported
    with quiet():
        for name, labels in TASKS.items():
            _write_data(folder / "data" / name, TASK_ROWS[name], labels)
        make_base(folder / "base", _texts())
    for name in RECIPES:
        recipe = changed(yaml.safe_load((HERE / name).read_text()), name)
        (folder / name).write_text(yaml.safe_dump(recipe, sort_keys=False))


def changed(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """A shipped recipe, pointed at the stand-ins."""
    tasks = [{**task, "data": f"data/{task['data_config']}"} for task in recipe["tasks"]]
    for task in tasks:
        del task["data_config"], task["num_train_epochs"]
    share = name.replace(".yaml", ".share")
    return {**recipe, **CHANGES, "share": share, "tasks": tasks}


def make_base(folder: Path, texts: Sequence[str]) -> None:
    """A checkpoint as roberta-base is one: a masked language model, without pooler or classifier.

    Random weights, of a seed.
    """
    transformers = require("transformers", "train")
    folder.mkdir(parents=True, exist_ok=True)
    size = _make_tokenizer(folder, texts)
    config = transformers.RobertaConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH + 2,
        type_vocab_size=1,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.RobertaForMaskedLM(config).save_pretrained(folder)


def _make_tokenizer(folder: Path, texts: Sequence[str]) -> int:
    """Byte-level BPE; the number of its tokens."""
    tokenizer = require("tokenizers", "train").ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=400, special_tokens=list(SPECIAL))
    tokenizer.save_model(str(folder))
    settings = {"model_max_length": LENGTH, "tokenizer_class": "RobertaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return int(tokenizer.get_vocab_size())


def _write_data(
    folder: Path, rows: Callable[[random.Random], Iterator[Example]], labels: Sequence[str]
) -> None:
    """Parquet files, as the Hub has GLUE; labels of the test split are hidden there, too."""
    datasets = require("datasets", "train")
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in SPLITS.items():
        made = rows(random.Random(f"{folder.name} {split}"))
        examples = [{**next(made), "idx": at} for at in range(count)]
        if split == "test":
            examples = [{**row, "label": -1} for row in examples]
        kinds = {name: datasets.Value("string") for name in examples[0]}
        label = datasets.ClassLabel(names=list(labels)) if labels else datasets.Value("float32")
        features = datasets.Features({**kinds, "label": label, "idx": datasets.Value("int32")})
        part = datasets.Dataset.from_list(examples, features=features)
        part.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


def _texts() -> list[str]:
    """Of all tasks' train splits."""
    texts = []
    for name, rows in TASK_ROWS.items():
        made = rows(random.Random(f"{name} train"))
        for row in (next(made) for _ in range(SPLITS["train"])):
            texts += [value for key, value in row.items() if key != "label"]
    return texts


def _words(draw: random.Random) -> list[str]:
    mood = draw.choice(_MOODS[0] + _MOODS[1])
    return [draw.choice(_NAMES), draw.choice(_VERBS), "the", mood, draw.choice(_THINGS)]


def _sentence(words: Sequence[str]) -> str:
    return " ".join(words) + "."


def _altered(draw: random.Random, words: Sequence[str], count: int) -> list[str]:
    """With some of its words of another sentence."""
    replacements, altered = _words(draw), list(words)
    for at in draw.sample(range(len(altered)), count):
        altered[at] = replacements[at]
    return altered


def _single(right: Callable[[random.Random, int], list[str]]) -> Callable[..., Iterator[Example]]:
    """Rows of one text, whose class decides how it is written."""

    def rows(draw: random.Random) -> Iterator[Example]:
        while True:
            label = draw.randrange(2)
            yield {"sentence": _sentence(right(draw, label)), "label": label}

    return rows


def _pair(
    first: str, second: str, label: Callable[[int], float]
) -> Callable[[random.Random], Iterator[Example]]:
    """Rows of two texts; the label is of how many words differ, 0 to 5."""

    def rows(draw: random.Random) -> Iterator[Example]:
        while True:
            words, count = _words(draw), draw.randrange(6)
            second_text = _sentence(_altered(draw, words, count))
            yield {first: _sentence(words), second: second_text, "label": label(count)}

    return rows


def _acceptable(draw: random.Random, label: int) -> list[str]:
    words = _words(draw)
    return words if label else draw.sample(words, len(words))


def _moody(draw: random.Random, label: int) -> list[str]:
    words = _words(draw)
    words[3] = draw.choice(_MOODS[label])
    return words


TASKS: Mapping[str, tuple[str, ...]] = {
    "cola": ("unacceptable", "acceptable"),
    "mrpc": ("not_equivalent", "equivalent"),
    "rte": ("entailment", "not_entailment"),
    "stsb": (),
    "qnli": ("entailment", "not_entailment"),
    "sst2": ("negative", "positive"),
}
"""GLUE's names of the classes; none for the regression."""
TASK_ROWS: Mapping[str, Callable[[random.Random], Iterator[Example]]] = {
    "cola": _single(_acceptable),
    "mrpc": _pair("sentence1", "sentence2", lambda count: int(count < 3)),
    "rte": _pair("sentence1", "sentence2", lambda count: int(count >= 3)),
    "stsb": _pair("sentence1", "sentence2", lambda count: 5.0 - count),
    "qnli": _pair("question", "sentence", lambda count: int(count >= 3)),
    "sst2": _single(_moody),
}
"""Endless examples of each."""


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    standins.main(arguments, __doc__, make)
