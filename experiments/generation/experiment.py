"""A small Llama and its tasks. What the numbers were chosen by is in README.md."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from experiments.generation.base import Base, Tokens, load_base, padded, tokenise
from experiments.generation.scoring import Tests, make_tests, score
from experiments.generation.settings import FULL, LEARN, LEARN_QUICK, QUICK, numbers
from experiments.generation.tasks import make_tasks
from experiments.harness.experiment import Experiment
from experiments.harness.trials import by_rate
from sharespace.compare import TaskJob
from sharespace.learn import Setup


class Generation(Experiment):
    """See the package. The base model is trained where the cache lacks it."""

    name = "generation"
    subspace = False
    held_out = 64
    tuned = ("banking77-1", "clinc150-1", "rule-rotate")

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        size = self.size = QUICK if self.quick else FULL
        self.model = load_base(options.data, size.pretraining, self.cache)
        tasks = make_tasks(options.data, size)
        self.tasks = {task.name: task for task in tasks}
        self.tests = {t.name: t for t in make_tests(self.model, tasks, size.pretraining.length)}
        self.base = self.model.name
        self.key = f"{self.base}-{size.learn_steps}"
        self.orders = {"generation": LEARN_QUICK if self.quick else LEARN}
        self.numbers = numbers(size)
        self.trials = by_rate(size.learn_steps, (8, (4e-3,)), (12, 6, (1.2e-1,)))

    def job(self, task: str, seed: int, held_out: int = 0) -> TaskJob:
        """No heads; the loss is that of the answers."""
        del seed  # Of a head.
        tests, examples = self.tests[task], self.tasks[task].train
        rows = tokenise(self.model.tokenizer, examples, self.size.pretraining.length)
        if held_out:
            count = len(rows) - held_out
            scored = replace(tests.task, test=examples[count:])
            tests, rows = Tests(scored, tuple(rows[count:])), rows[:count]
        return TaskJob(
            name=task,
            data=Examples(rows),
            model=lambda: copy.deepcopy(self.model.model),
            score=lambda model: percent(self.model, tests, model),
            heads=(),
            setup=Setup(collator=collate),
        )


class Examples(Dataset[Tokens]):
    """Training examples of one task."""

    def __init__(self, rows: Sequence[Tokens]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tokens:
        return self.rows[index]


def collate(rows: list[Tokens]) -> dict[str, Tensor]:
    """input_ids and labels, both batch x longest."""
    ids, labels = padded(rows)
    return {"input_ids": ids, "labels": labels}


def percent(base: Base, tests: Tests, model: nn.Module) -> float:
    """Of one task, with PEFT's layers in the model."""
    plain: Any = model
    if hasattr(plain, "get_base_model"):
        plain = plain.get_base_model()
    with torch.autocast("cpu", enabled=False):
        scores = score(Base(plain, base.tokenizer, base.name), [tests], None)
    return scores[tests.name].percent
