"""The tasks of the learning stream as the baselines take them: no heads, loss on the answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from experiments.generation.base import Base, Tokens, padded, tokenise
from experiments.generation.scoring import Tests, score
from experiments.generation.script import Ready
from torch import Tensor, nn
from torch.utils.data import Dataset

from sharespace.compare import TaskJob
from sharespace.learn import Setup


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


def make_jobs(ready: Ready, names: Sequence[str], held_out: int = 0) -> list[TaskJob]:
    """The tasks of a stream, in order.

    Args:
        held_out: so many of the training examples take the place of the test examples, and
            nothing is trained on them.
    """
    return [_job(ready, name, held_out) for name in names]


def _job(ready: Ready, name: str, held_out: int) -> TaskJob:
    tests = ready.tests[name]
    examples = ready.tasks[name].train
    rows = tokenise(ready.base.tokenizer, examples, ready.size.pretraining.length)
    if held_out:
        kept = len(rows) - held_out
        task = replace(tests.task, test=examples[kept:])
        tests, rows = Tests(task, tuple(rows[kept:])), rows[:kept]
    return TaskJob(
        name=name,
        data=Examples(rows),
        model=lambda: copy.deepcopy(ready.base.model),
        score=_scorer(ready.base, tests),
        heads=(),
        setup=Setup(collator=collate),
    )


def _scorer(base: Base, tests: Tests) -> Callable[[nn.Module], float]:
    def percent(model: nn.Module) -> float:
        with torch.autocast("cpu", enabled=False):
            found = score(Base(_inner(model), base.tokenizer, base.name), [tests], None)
        return found[tests.name].percent

    return percent


def _inner(model: Any) -> Any:
    """The language model itself, with PEFT's layers in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
