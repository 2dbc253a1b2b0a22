"""A small world for streams: a tiny BERT on disk, data sets and adapters for it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from sharespace.formats import PlainLora, write_adapter
from sharespace.subspace.adapter import BaseModel, LayerUpdate

WORDS = [f"w{i}" for i in range(24)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SIDE = 16
MODULES = [
    f"bert.encoder.layer.{i}.attention.self.{name}" for i in range(2) for name in ("query", "value")
]

HEAD = """\
base: base
share: out.share
k: 6
p: 3
phi: 1
form: factors
start: zero
lora_rank: 2
target_modules: [query, value]
max_length: 16
learning_rate: 2e-2
lora_learning_rate: 2e-2
max_steps: 6
per_device_train_batch_size: 8
use_cpu: true
"""
DATA = "- {name: colour, data: data/colour}\n"
MORE = "- {name: size, data: data/size}\n"
LEGAL = "- {name: legal, adapter: adapters/legal}\n"
BOTH = "- {name: mood, data: data/mood, adapter: adapters/mood}\n"
VALUE = "- {name: value, data: data/value, task_type: regression}\n"
TASKS = (DATA, LEGAL, MORE, BOTH)
"""First learned as a LoRA of its own, then an adapter, data, and both."""


def make(folder: Path) -> None:
    """``base``, ``data/<task>``, ``adapters/<task>``."""
    make_bert(folder / "base")
    for at, (name, labels) in enumerate((("colour", 2), ("size", 3), ("mood", 2))):
        make_classes(folder / "data" / name, labels, seed=at)
    make_values(folder / "data" / "value")
    make_adapter(folder / "adapters" / "legal", 1)
    make_adapter(folder / "adapters" / "mood", 2, labels=2)


def recipe(folder: Path, *tasks: str, head: str = HEAD, **keys: Any) -> Path:
    """``recipe.yaml`` of these tasks, its keys changed or added."""
    lines = {line.partition(":")[0]: line for line in head.splitlines()}
    lines |= {key: f"{key}: {json.dumps(value)}" for key, value in keys.items()}
    path = folder / "recipe.yaml"
    path.write_text("\n".join(lines.values()) + "\ntasks:\n" + "".join(tasks or TASKS))
    return path


def make_tokenizer(path: Path, **special: str) -> None:
    words = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32, **special
    ).save_pretrained(path)


def make_bert(path: Path) -> None:
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=SIDE,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=SIDE,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(path)
    make_tokenizer(path)


def make_gpt(path: Path) -> None:
    config = GPT2Config(
        vocab_size=len(SPECIAL) + len(WORDS),
        n_embd=SIDE,
        n_layer=2,
        n_head=2,
        n_positions=32,
        bos_token_id=3,
        eos_token_id=3,
        pad_token_id=0,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(path)
    make_tokenizer(path, eos_token="[SEP]")


def make_classes(folder: Path, labels: int, seed: int, train: int = 48, test: int = 24) -> None:
    """The class is which of some words is in the text."""
    draw = random.Random(seed)
    first = 4 * seed

    def rows(count: int) -> list[dict[str, Any]]:
        found = []
        for at in range(count):
            label = at % labels
            words = [WORDS[first + label], *draw.choices(WORDS[12:], k=3)]
            draw.shuffle(words)
            found.append({"text": " ".join(words), "label": f"class{label}"})
        return found

    write(folder / "train.jsonl", rows(train))
    write(folder / "test.jsonl", rows(test))


def make_values(folder: Path) -> None:
    """The value is how often a word is in the text."""
    draw = random.Random(9)

    def rows(count: int) -> list[dict[str, Any]]:
        texts = [[draw.choice(WORDS[:2]) for _ in range(5)] for _ in range(count)]
        return [{"text": " ".join(t), "label": t.count(WORDS[0]) / 5} for t in texts]

    write(folder / "train.jsonl", rows(32))
    write(folder / "test.jsonl", rows(16))


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_adapter(
    path: Path, seed: int, labels: int = 0, modules: Iterable[str] = MODULES, side: int = SIDE
) -> None:
    """Normal factors of rank 2; a head where there are labels."""
    draw = torch.Generator().manual_seed(seed)
    updates = {
        m: LayerUpdate(
            torch.randn(side, 2, generator=draw) / 4, torch.randn(2, side, generator=draw) / 4
        )
        for m in modules
    }
    kept = {}
    if labels:
        kept["base_model.model.classifier.weight"] = torch.randn(labels, side, generator=draw)
        kept["base_model.model.classifier.bias"] = torch.zeros(labels)
    config = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"] if labels else None}
    write_adapter(path, PlainLora(updates, kept=kept, config=config, base=BaseModel("base")))
