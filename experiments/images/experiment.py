"""Image tasks on two backbones. What the numbers were chosen by is in README.md."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from experiments.harness.cached import stacked
from experiments.harness.experiment import Experiment
from experiments.harness.heads import Head, HeadTraining, train_head
from experiments.harness.numbers import Numbers
from experiments.harness.trials import by_rate
from experiments.images.base import accuracy, features, flipped, maker
from experiments.images.mobile import mobilenet
from experiments.images.sets import read
from experiments.images.size import FULL, QUICK
from experiments.images.tasks import STREAMS, TASKS
from experiments.images.vit import small_vit
from sharespace.compare import TaskJob
from sharespace.learn import Setup

WEIGHTS = Path("backbones") / "mobilenet_v1_025_128"


class Images(Experiment):
    """See the package."""

    name = "images"
    data = "folder of images and backbones"
    bases = tuple(STREAMS)
    subspace = False
    held_out = 300

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        size = self.size = QUICK if self.quick else FULL
        self.orders = self.streams(STREAMS[options.base])
        self.images = options.data / "images"
        self.backbone = mobilenet(options.data / WEIGHTS, size.blocks, size.side)
        if options.base == "vit":
            self.backbone = small_vit(self.backbone, self.images, size, self.cache)
        self.base = self.backbone.name
        self.key = f"{self.backbone.digest}-{size.steps}"
        on_vit = options.base == "vit"
        self.numbers = Numbers(
            steps=size.steps,
            batch_size=size.batch_size,
            lora=4e-3 if on_vit else 8e-3,
            core=4e-2 if on_vit else 2e-2,
            p=10 if on_vit else 32,
            phi=5 if on_vit else 16,
            targets=self.backbone.targets,
            bf16=self.backbone.bf16,
        )
        self.tuned = ("odd-4" if on_vit else "cifar-6", "fashion-rotated")
        self.new_tasks = ("odd-4" if on_vit else "cifar-4",)
        core = (self.numbers.p, self.numbers.phi, (1e-2, 3e-2, 1e-1))
        self.trials = by_rate(size.steps, (8, (2e-3, 4e-3, 8e-3)), core)

    def share_folder(self, order: str, seed: int) -> Path:
        return self.cache / "share" / f"{self.options.base}-{order}-{seed}"

    def job(self, task: str, seed: int, held_out: int = 0) -> TaskJob:
        source, cache = TASKS[task], self.cache / "features"
        given = read(source, self.images, "train", self.size.train)
        asked = read(source, self.images, "test", self.size.test)
        train, test = (features(examples, self.backbone, cache) for examples in (given, asked))
        if held_out:
            test = train.rows(slice(len(train) - held_out, None))
        learned = slice(len(train) - held_out)
        train = train.rows(learned)
        if source.flips:
            train = train.joined(features(flipped(given), self.backbone, cache).rows(learned))
        head = Head(train.pooled, given.classes)
        training = HeadTraining(self.size.head_steps)
        train_head(head, train.pooled, train.labels, seed, training)
        return TaskJob(
            name=task,
            data=train,
            model=maker(self.backbone, head),
            score=partial(accuracy, test=test, base=self.backbone),
            setup=Setup(collator=stacked),
        )
