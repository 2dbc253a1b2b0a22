"""Experience replay: a few examples of every earlier task are mixed into the new one's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from sharespace.compare.bench import Workbench
from sharespace.compare.job import Outcome, TaskJob
from sharespace.compare.methods.own import train
from sharespace.compare.methods.sequential import Models, in_sequence
from sharespace.compare.trainers import MixedPart, fit_together, train_heads
from sharespace.learn import Fit


def replay(bench: Workbench) -> Outcome:
    """Sequential LoRA with ``Settings.replay`` of every earlier task's examples. Uses old data.

    Old examples come as batches of their own, as often as their part of all examples says (one a
    task at least), beside all the new task's steps. Heads of earlier tasks stay as they were.
    Kept examples are counted as state: the bytes of their tensors, numbers and texts.
    """
    buffer = Buffer(bench)

    def train_one(job: TaskJob, models: Models) -> Fit:
        training = bench.settings.training(bench.settings.lora, job)
        if not buffer.kept:
            buffer.add(job)
            return train(bench, job, models[job.name], bench.settings.lora)
        parts = [MixedPart(job, training.max_steps), *buffer.parts(job, training.max_steps)]
        for name in buffer.kept:
            train_heads(models[name], bench.job(name).heads, on=False)
        result = fit_together({p.job.name: models[p.job.name] for p in parts}, parts, training)
        for part in parts:
            bench.restore_buffers(part.job.name, models[part.job.name])
        buffer.add(job)
        return result

    return in_sequence(bench, "replay", train_one, state=buffer.nbytes, uses_old_data=True)


class Buffer:
    """The examples that are kept of earlier tasks."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.kept: dict[str, list[int]] = {}
        """Task -> indices of its examples."""

    def add(self, job: TaskJob) -> None:
        """Keep some of a task's examples, chosen at random."""
        count = math.ceil(self.bench.settings.replay * len(job.data))
        generator = torch.Generator().manual_seed(self.bench.settings.seed)
        order = torch.randperm(len(job.data), generator=generator)
        self.kept[job.name] = order[:count].tolist()

    def parts(self, job: TaskJob, steps: int) -> list[MixedPart]:
        """Of the earlier tasks, beside so many steps of a new one."""
        return [
            MixedPart(
                self.bench.job(name),
                max(1, round(steps * len(indices) / len(job.data))),
                indices,
            )
            for name, indices in self.kept.items()
        ]

    def nbytes(self) -> int:
        """Of all kept examples."""
        return sum(
            _bytes(self.bench.job(name).data[i])
            for name, indices in self.kept.items()
            for i in indices
        )


def _bytes(example: Any) -> int:
    """Of a tensor, a number or a text, and of mappings and dataclasses of them."""
    if isinstance(example, str):
        return len(example.encode())
    if isinstance(example, Mapping):
        return sum(map(_bytes, example.values()))
    if is_dataclass(example):
        return sum(_bytes(getattr(example, field.name)) for field in fields(example))
    return torch.as_tensor(example).nbytes
