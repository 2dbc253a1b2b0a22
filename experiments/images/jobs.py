"""The tasks as the baselines take them: data, models and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from experiments.common.heads import train_head
from experiments.images.base import Base, computing, maker
from experiments.images.features import Features, features, flipped, join
from experiments.images.sets import ImageSet, Split, read
from experiments.images.settings import TASKS, Size
from torch import nn

from sharespace.compare import TaskJob
from sharespace.learn import Setup

_EVALUATED = 100
"""Examples in a batch."""


def make_job(
    base: Base, data: Path, task: str, size: Size, seed: int, cache: Path, *, held_out: int = 0
) -> TaskJob:
    """One task. Its head starts from what is best on the frozen base, for every method.

    Args:
        data: folder with one folder a set.
        task: a name of ``TASKS``.
        seed: of the head.
        cache: of features.
        held_out: so many of the training examples take the place of the test examples, and
            nothing is trained on them.
    """

    def examples(split: Split, limit: int) -> ImageSet:
        return read(TASKS[task], data, split, limit)

    given, asked = examples("train", size.train), examples("test", size.test)
    train, test = features(given, base, cache), features(asked, base, cache)
    mirrored = features(flipped(given), base, cache) if TASKS[task].flips else None
    if held_out:
        kept = len(train) - held_out
        test = train.rows(slice(kept, None))
        train = train.rows(slice(kept))
        mirrored = mirrored.rows(slice(kept)) if mirrored else None
    train = join(train, mirrored) if mirrored else train
    head = train_head(train.pooled, train.labels, given.classes, seed)
    return TaskJob(
        name=task,
        data=train,
        model=maker(base, head),
        score=_scorer(base, test),
        setup=Setup(collator=collate),
    )


def make_jobs(
    base: Base, data: Path, tasks: Sequence[str], size: Size, seed: int, cache: Path
) -> list[TaskJob]:
    """The tasks of a stream, in order."""
    return [make_job(base, data, task, size, seed, cache) for task in tasks]


def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch: hidden (batch, ...), labels (batch,)."""
    return {name: torch.stack([e[name] for e in examples]) for name in examples[0]}


def _scorer(base: Base, test: Features) -> Callable[[nn.Module], float]:
    return lambda model: accuracy(model, test, base)


@torch.no_grad()
def accuracy(model: nn.Module, test: Features, base: Base) -> float:
    """Percent of the examples."""
    right = 0
    batches = zip(
        *(torch.split(part, _EVALUATED) for part in (test.hidden, test.labels)), strict=True
    )
    for hidden, labels in batches:
        with computing(base):
            found = model(hidden=hidden)["logits"].argmax(1)
        right += int((found == labels).sum())
    return 100 * right / len(test)
