"""Experience replay: a few examples of every earlier task are mixed into the new one's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from sharespace.compare.bench import Workbench
from sharespace.compare.compared import compared_method
from sharespace.compare.job import Outcome, TaskJob
from sharespace.compare.lora import train_heads
from sharespace.compare.methods.sequential import TaskModels, in_sequence
from sharespace.compare.trainers import MixedPart, fit_together
from sharespace.learn import Fit


@compared_method(
    "replay", paper="https://arxiv.org/abs/1811.11682", uses_old_data=True, trains="lora"
)
def replay(bench: Workbench) -> Outcome:
    """Sequential LoRA with ``ComparisonSettings.replay`` of every earlier task's examples.

    Old examples come as batches of their own, as often as their part of all examples says (one a
    task at least), beside all the new task's steps. Heads of earlier tasks stay as they were. The
    examples of the buffer are counted as state: the bytes of their tensors, numbers and texts.
    """
    buffer = ReplayBuffer(bench)

    def train_one(job: TaskJob, models: TaskModels) -> Fit:
        training = bench.settings.training(bench.settings.lora, job)
        parts = [MixedPart(job, training.max_steps), *buffer.parts(job, training.max_steps)]
        for name in buffer.rows:
            train_heads(models[name], bench.job(name).heads, on=False)
        if len(parts) == 1:
            fitted = bench.train(job.name, models[job.name], bench.settings.lora)
        else:
            of_parts = {part.job.name: models[part.job.name] for part in parts}
            fitted = fit_together(of_parts, parts, training)
            for name, model in of_parts.items():
                bench.restore_buffers(name, model)
        buffer.add(job)
        return fitted

    return in_sequence(bench, train_one, state=buffer.nbytes)


class ReplayBuffer:
    """The examples of earlier tasks that replay keeps."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.rows: dict[str, list[int]] = {}
        """Earlier task -> numbers of its examples that are kept."""

    def add(self, job: TaskJob) -> None:
        """Keep some of a task's examples, chosen at random."""
        count = math.ceil(self.bench.settings.replay * len(job.data))
        generator = torch.Generator().manual_seed(self.bench.settings.seed)
        order = torch.randperm(len(job.data), generator=generator)
        self.rows[job.name] = order[:count].tolist()

    def parts(self, job: TaskJob, steps: int) -> list[MixedPart]:
        """The earlier tasks' parts of a training that has so many steps of a new task."""
        return [
            MixedPart(self.bench.job(name), max(1, round(steps * len(rows) / len(job.data))), rows)
            for name, rows in self.rows.items()
        ]

    def nbytes(self) -> int:
        """Bytes of all examples that are kept."""
        return sum(
            _bytes(self.bench.job(name).data[row])
            for name, rows in self.rows.items()
            for row in rows
        )


def _bytes(example: Any) -> int:
    """Bytes of a tensor, a number or a text, and of mappings and dataclasses of them."""
    if isinstance(example, str):
        return len(example.encode())
    if isinstance(example, Mapping):
        return sum(map(_bytes, example.values()))
    if is_dataclass(example):
        return sum(_bytes(getattr(example, field.name)) for field in fields(example))
    return torch.as_tensor(example).nbytes
