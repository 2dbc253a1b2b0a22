"""The new tasks, the tasks that are known when they come, and how few examples are drawn."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import torch

from experiments.harness.heads import Head, HeadTraining, train_head
from experiments.text_stream.experiment import Size, TextStream
from experiments.text_stream.features import TextFeatures, collate
from experiments.text_stream.model import accuracy, upper_encoder
from experiments.text_stream.sets import read
from sharespace.compare import ComparisonSettings, TaskJob
from sharespace.learn import Setup, TrainingSettings

OTHERS = ("agnews", "boolq")
"""Known tasks that are known in every case, related to no new task."""


@dataclass(frozen=True)
class NewTask:
    """A task to be learned from few examples."""

    related: str
    """A known task of the same kind: reviews for reviews, inference for inference."""
    unrelated: str
    """A known task of the other kind, which takes its place in the control."""
    decides: bool = False
    """Rates, steps and rules were chosen on this task, so that it reports nothing."""

    def known(self, kind: str) -> tuple[str, ...]:
        """All known tasks: the ``"related"`` or ``"unrelated"`` one first, then ``OTHERS``."""
        return (self.related if kind == "related" else self.unrelated, *OTHERS)


TASKS: Mapping[str, NewTask] = {
    "amazon5": NewTask("yelp5", "mnli", decides=True),
    "qnli": NewTask("mnli", "amazon5", decides=True),
    "yelp5": NewTask("amazon5", "mnli"),
    "imdb": NewTask("yelp5", "mnli"),
    "rte": NewTask("mnli", "amazon5"),
    "cb": NewTask("mnli", "amazon5"),
}
"""Name -> how it is related to the others."""

FULL = Size(lower=4, length=48, train=2000, test=800, steps=150, batch_size=16)
QUICK = Size(lower=5, length=16, train=48, test=24, steps=2, batch_size=8, head_steps=9)
"""For tests: nothing is learned."""

STEPS = {16: 24, 64: 48, 256: 96, 1024: 192}
"""Examples -> steps of a training; a number between two has those of the larger one."""

BATCH = 8
"""Examples of a step."""


class Transfer(TextStream):
    """New tasks on the upper layers of the encoder, and own LoRAs of the known ones."""

    name = "transfer"
    sizes: ClassVar[tuple[Size, Size]] = (FULL, QUICK)

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self._sets: dict[str, tuple[TextFeatures, TextFeatures]] = {}

    def sets(self, task: str) -> tuple[TextFeatures, TextFeatures]:
        """Examples that few are drawn from, and test examples; the same for all seeds.

        The train split is cut in two: what is not drawn from is tested on, too, so that small sets
        have test examples enough.
        """
        if task not in self._sets:
            folder, size = self.options.data / task, self.size
            train = self.lower.features(read(folder, "train", size.train, seed=0))
            test = self.lower.features(read(folder, "test", size.test, seed=0))
            drawn_from = min(1024, len(train) * 3 // 5)
            test = test.followed_by(train.after(drawn_from))
            self._sets[task] = train.subset(drawn_from), test.subset(min(size.test, len(test)))
        return self._sets[task]

    def drawn(self, task: str, count: int, seed: int) -> TextFeatures:
        """So many examples of a new task (or all there are), each label in its proportion."""
        examples, _ = self.sets(task)
        return examples.rows(spread_labels(examples.labels, seed)[:count])

    def labels(self, task: str) -> tuple[str, ...]:
        """Names of a task's labels, in the order of the head's outputs."""
        return tuple((self.options.data / task / "labels.txt").read_text().splitlines())

    def few_job(self, task: str, examples: TextFeatures, head: Head) -> TaskJob:
        """A new task on these examples, with a head to start from."""
        names = SimpleNamespace(model_input_names=["hidden"])
        return TaskJob(
            name=task,
            data=examples,
            model=partial(upper_encoder, self.lower.encoder, self.lower.layers, head),
            score=partial(accuracy, test=self.sets(task)[1]),
            setup=Setup(collator=collate, options={"processing_class": names}),
        )

    def fresh_head(self, task: str, pooled: torch.Tensor, labels: torch.Tensor, seed: int) -> Head:
        """A head trained on features of the examples alone, as everywhere in these experiments."""
        head = Head(pooled, len(self.labels(task)))
        return train_head(head, pooled, labels, seed, HeadTraining(self.size.head_steps))

    def few_settings(self, seed: int, count: int, known: int) -> ComparisonSettings:
        """Numbers of all trainings on so many examples, in a space of so many known tasks."""
        steps = next((s for n, s in STEPS.items() if count <= n), max(STEPS.values()))
        settings = self.settings(seed, known + 1)

        def shorter(training: TrainingSettings) -> TrainingSettings:
            return replace(
                training,
                max_steps=self.size.steps if self.quick else steps,
                per_device_train_batch_size=BATCH,
                seed=seed,
            )

        return replace(
            settings, lora=shorter(settings.lora), coefficients=shorter(settings.coefficients)
        )


def spread_labels(labels: torch.Tensor, seed: int) -> list[int]:
    """All numbers of examples in an order drawn with the seed, whose every beginning has the labels
    in about the proportion of the whole."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    place = torch.empty(len(labels))
    for label in torch.unique(labels):
        rows = order[labels[order] == label]
        # Within a label evenly over the whole, from the middle of its first interval on.
        place[rows] = (torch.arange(len(rows)) + 0.5) / len(rows)
    return [int(row) for row in order[place[order].argsort(stable=True)]]
