"""Rendered categories as tasks. What the numbers were chosen by is in README.md."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.harness.cached import Features, cached, digest
from experiments.harness.heads import Head
from experiments.harness.mobilenet import load_mobilenet
from experiments.harness.numbers import Numbers
from experiments.harness.trials import by_rate
from experiments.pose.images import Images, category
from experiments.pose.model import lower_states, train_head, upper_mobilenet
from experiments.pose.rotations import turns
from experiments.pose.size import FULL, QUICK, Size
from experiments.pose.task import PoseExperiment, PoseTask

ORDERS = {
    "animals-first": (
        "spot",
        "suzanne",
        "stanford-bunny",
        "cow",
        "teapot",
        "beetle-alt",
        "rocker-arm",
        "fandisk",
    ),
    "things-first": (
        "fandisk",
        "rocker-arm",
        "beetle-alt",
        "teapot",
        "cow",
        "stanford-bunny",
        "suzanne",
        "spot",
    ),
}
"""The first three come as adapters, the others are learned from data, one by one."""
GROUPS: dict[str, tuple[tuple[float, float, float], int]] = {}
"""Category -> axis and number of turns of its rotational symmetry: none of these meshes has one
(README.md); what is put here is scored so."""
BACKBONE = "mobilenet_v1_025_128"
_BATCH = 125
"""Views in a batch."""


def numbers(size: Size) -> Numbers:
    """What is trained with."""
    return Numbers(
        steps=size.steps,
        batch_size=size.batch_size,
        lora=1.2e-2,
        core=4e-2,
        p=32,
        phi=16,
        targets=[f"layer.{i}.convolution" for i in range(size.lower, 26) if i % 2],
        head=2e-3,
        osf=None,
    )


class Pose(PoseExperiment):
    """See the package."""

    name = "pose"
    data = "has backbones/ and meshes/"
    held_out = 200
    base = BACKBONE
    tuned = ("cow", "fandisk")
    new_tasks = ("cow",)

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        size = self.size = QUICK if self.quick else FULL
        self.orders = self.streams(ORDERS)
        self.key = f"{size.pixels}-{size.lower}-{size.steps}"
        model = load_mobilenet(options.data / "backbones" / BACKBONE)
        self.backbone: Any = model.mobilenet_v1
        self.backbone_key = digest(self.backbone)
        self.numbers = numbers(size)
        self.trials = by_rate(size.steps, (8, (4e-3, 8e-3, 2e-2)), (32, 16, (1e-2, 3e-2, 1e-1)))

    def task(self, name: str, seed: int, held_out: int = 0) -> PoseTask:
        train, clean_and_occluded = self.once(name, lambda: self._views(name))
        tests = dict(clean_and_occluded)
        if held_out:
            count = len(train) - held_out
            train, tests["clean"] = train.rows(slice(count)), train.rows(slice(count, None))
        size = self.size
        make = partial(upper_mobilenet, self.backbone, size.lower, bins=size.bins, cells=size.cells)
        width = self.backbone.layer[-1].convolution.out_channels * size.cells**2
        plain = make(Head(torch.zeros(2, width), sum(size.bins.counts)))
        with torch.no_grad():
            parts = torch.split(train.hidden, _BATCH)
            seen = torch.cat([plain.features(hidden.float()) for hidden in parts])
        head = train_head(seen, train.labels, size.bins, seed, size.head_steps)
        return PoseTask(name, train, tests, partial(make, head), group_of(name))

    def _views(self, name: str) -> tuple[Features, dict[str, Features]]:
        """Of training and of all test sets; the same for all seeds."""
        images = category(self.options.data / "meshes", name, self.size, self.cache)
        tests = {test: self._features(views) for test, views in images.tests.items()}
        return self._features(images.train), tests

    def _features(self, images: Images) -> Features:
        name = digest(images.pixels, self.size.lower, self.backbone_key)
        tensors = cached(
            self.cache / "features",
            name,
            lambda: {"hidden": lower_states(images.pixels, self.backbone, self.size.lower)},
        )
        return Features(tensors["hidden"], images.angles, torch.empty(len(images.angles), 0))


def group_of(name: str) -> Tensor | None:
    """The rotations that leave an object as it is; None: only the identity."""
    return turns(*GROUPS[name]) if name in GROUPS else None
