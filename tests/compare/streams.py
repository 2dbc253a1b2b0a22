"""A tiny backbone, and streams of tasks that agree or conflict on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sharespace.compare import ComparisonSettings, TaskJob
from sharespace.learn import TaskMethod, TrainingSettings

SHAPES = {"first": (24, 10), "second": (20, 24)}
"""Adapted modules -> n x d."""
LORA = sum(n + d for n, d in SHAPES.values())
"""Numbers of a LoRA of rank 1."""


class Net(nn.Module):
    """Two linear modules and a head; the loss as transformers' models return it."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 24), nn.Linear(24, 20)
        self.classifier = nn.Linear(20, labels)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.classifier(torch.tanh(self.second(torch.tanh(self.first(x)))))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def net(labels: int) -> Net:
    """The same backbone and the same head at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(labels)


class Points(Dataset[dict[str, Tensor]]):
    """Random points, labelled by which of some random products of two projections is largest.

    The seed decides the task.
    """

    reads: ClassVar[list[int]] = []
    """Seeds of all points that were read, in order."""

    def __init__(self, seed: int, labels: int, count: int = 160) -> None:
        task = torch.Generator().manual_seed(seed)
        left = torch.randn(labels, 10, generator=task)
        right = torch.randn(labels, 10, generator=task)
        points = torch.Generator().manual_seed(100 + seed)
        self.seed = seed
        self.x = torch.randn(count, 10, generator=points)
        self.labels = ((self.x @ left.T) * (self.x @ right.T)).argmax(dim=1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        Points.reads.append(self.seed)
        return {"x": self.x[index], "labels": self.labels[index]}


def scorer(points: Points) -> Callable[[nn.Module], float]:
    def score(model: nn.Module) -> float:
        found = model(x=points.x)["logits"].argmax(dim=1) == points.labels
        return 100 * float(found.float().mean())

    return score


def job(seed: int, labels: int = 3, **changes: Any) -> TaskJob:
    """A task of its own; scored on its training points, as these tests are of learning."""
    points = Points(seed, labels)
    made = TaskJob(f"task{seed}", points, lambda: net(labels), scorer(points))
    return replace(made, **changes)


def jobs(count: int = 3) -> list[TaskJob]:
    """Tasks with 2, 3, 4 ... labels."""
    return [job(seed, labels=2 + seed) for seed in range(count)]


def settings(**changes: Any) -> ComparisonSettings:
    lora = TrainingSettings(
        max_steps=50,
        learning_rate=1e-1,
        per_device_train_batch_size=32,
        use_cpu=True,
        weight_decay=0.01,
        lr_scheduler_type="cosine",
    )
    slower = replace(lora, learning_rate=3e-2)
    base = ComparisonSettings(
        head=replace(slower, max_steps=40),
        lora=lora,
        coefficients=slower,
        targets=("first", "second"),
        rank=2,
        k=6,
        method=TaskMethod(p=4, phi=1, form="factors", start="zero"),
        initial=2,
        fisher_examples=32,
    )
    return replace(base, **changes)
