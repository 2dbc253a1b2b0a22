"""Instructions on the upper layers of SmolLM2. What the numbers were chosen by is in README.md."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from experiments.harness.experiment import Experiment
from experiments.harness.numbers import Numbers
from experiments.harness.trials import by_rate
from experiments.language_model.base import (
    NAME,
    LowerDecoder,
    collate,
    load_base,
    percent,
    prepare,
    upper_decoder,
)
from experiments.language_model.tasks import make_tasks
from sharespace.compare import TaskJob
from sharespace.learn import Setup

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All linear maps of the upper layers."""
STREAM = (
    *("agnews", "qnli", "amazon5", "clinc150-0"),
    *(
        "rule-reverse",
        "mnli",
        "clinc150-1",
        "yelp5",
        "dbpedia",
        "clinc150-2",
        "boolq",
        "rule-last-2",
    ),
    *("clinc150-3", "imdb", "banking77", "clinc150-4", "rte", "clinc150-5", "rule-rotate"),
    *("clinc150-6", "clinc150-7", "clinc150-8", "rule-long", "clinc150-9"),
)
"""The first four come as adapters, the others are learned from data, one by one."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    lower: int
    """Layers of the model that are frozen and computed once."""
    length: int
    """Tokens of the longest example."""
    train: int
    """Examples of a task, at most."""
    test: int
    steps: int
    batch_size: int


FULL = Size(lower=20, length=72, train=1000, test=300, steps=100, batch_size=16)
QUICK = Size(lower=1, length=192, train=24, test=12, steps=2, batch_size=4)
"""For tests: nothing is learned."""


class LanguageModel(Experiment):
    """See the package."""

    name = "language_model"
    subspace = False
    held_out = 250
    tuned = ("qnli", "amazon5", "clinc150-0")

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        size = self.size = QUICK if self.quick else FULL
        model, tokenizer = load_base(prepare(options.model, self.cache / "base"))
        self.lower = LowerDecoder(model, tokenizer, size.lower, size.length, self.cache)
        self.tasks = make_tasks(options.data, options.train or size.train, size.test)
        self.base = NAME
        self.key = f"{NAME}-{size.steps}-{options.train or size.train}"
        self.orders = self.streams({"all": STREAM, "eight": STREAM[:8]}, initial=4)
        self.numbers = Numbers(
            steps=size.steps,
            batch_size=size.batch_size,
            lora=8e-3,
            core=2e-2,
            p=10,
            phi=5,
            targets=TARGETS,
            initial=4,
            head=None,  # There are no heads.
            bf16=True,
            arguments={"train_sampling_strategy": "group_by_length"},
        )
        self.trials = by_rate(size.steps, (8, (8e-3, 2e-2)), (10, 5, (1e-2, 2e-2, 4e-2, 8e-2)))

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--model", type=Path, required=True, help="folder, .gguf file or wheel of SmolLM2"
        )
        parser.add_argument("--train", type=int, help="another number of examples a task")

    def job(self, task: str, seed: int, held_out: int = 0) -> TaskJob:
        """No heads; the loss is that of the answers."""
        del seed  # Of a head.
        examples = self.tasks[task]
        train = self.lower.features(examples.train)
        if held_out:
            count = len(train) - held_out
            train, test = train.part(0, count), train.part(count, len(train))
        else:
            test = self.lower.features(examples.test)
        options = self.lower.first_tokens(examples.options)
        if len(options) != len(examples.options):
            raise ValueError(f"task {task}: two answers begin with the same token")
        return TaskJob(
            name=task,
            data=train,
            model=partial(upper_decoder, self.lower),
            score=partial(percent, test=test, options=options),
            heads=(),
            setup=Setup(
                collator=collate,
                # What Trainer's sampler by length looks for.
                options={"processing_class": SimpleNamespace(model_input_names=["hidden"])},
            ),
        )
