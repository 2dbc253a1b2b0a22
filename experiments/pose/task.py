"""A category as a task: what it is trained and tested on, its model, its scores."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from experiments.harness.cached import stacked
from experiments.harness.experiment import Experiment
from experiments.pose.scoring import PoseScore, pose_score
from sharespace.compare import TaskJob
from sharespace.learn import Setup

_EVALUATED = 125
"""Views in a batch."""

Made = TypeVar("Made")
Views = Dataset[dict[str, Tensor]]
"""Of inputs of the model, and ``labels``: azimuth, elevation and theta in radians."""


@dataclass(frozen=True, eq=False)
class PoseTask:
    """One category, rendered or photographed."""

    name: str
    train: Views
    tests: Mapping[str, Views]
    """``"clean"`` and the levels of occlusion."""
    model: Callable[[], Any]
    """The base model with this task's head; its ``bins`` decode the logits."""
    group: Tensor | None = None
    """The rotations that leave the object as it is (``rotations.error``); None: none."""

    def job(self) -> TaskJob:
        """Scored by Acc at pi/6 on the clean test views."""
        return TaskJob(
            name=self.name,
            data=self.train,
            model=self.model,
            score=lambda model: self.measure(model).acc_pi_6,
            setup=Setup(collator=collate),
        )

    def measure(self, model: nn.Module, test: str = "clean") -> PoseScore:
        """All scores of a model on one of the test sets."""
        return pose_score(*self.predict(model, test), self.group)

    @torch.no_grad()
    def predict(self, model: nn.Module, test: str = "clean") -> tuple[Tensor, Tensor]:
        """Predicted and true angles of all views, radians, float32 [views, 3]."""
        logits, true = [], []
        device = next(model.parameters()).device
        for batch in DataLoader(self.tests[test], batch_size=_EVALUATED, collate_fn=collate):
            true.append(batch.pop("labels"))
            inputs = {name: value.to(device) for name, value in batch.items()}
            logits.append(model(**inputs)["logits"].float().cpu())
        predicted: Tensor = self.model().bins.decode(torch.cat(logits))
        return predicted, torch.cat(true)


def collate(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """All fields as float32, the examples along the first side."""
    return {name: field.float() for name, field in stacked(list(examples)).items()}


class PoseExperiment(Experiment):
    """An experiment whose tasks are categories."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self._made: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Made]) -> Made:
        """What was made under this key before, or now."""
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    def task(self, name: str, seed: int, held_out: int = 0) -> PoseTask:
        """One category; the arguments are those of ``job``."""
        raise NotImplementedError

    def job(self, task: str, seed: int, held_out: int = 0) -> TaskJob:
        return self.task(task, seed, held_out).job()
