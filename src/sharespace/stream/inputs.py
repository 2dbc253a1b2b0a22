"""A task's inputs as a router sees them: no labels, no answers, features of the base model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.utils.data import DataLoader

from sharespace.evaluate.metrics import IGNORED
from sharespace.recipe import TaskData, TaskSpec
from sharespace.route import Statistics, features
from sharespace.stream.shop import Workshop
from sharespace.stream.training import device

MOST = 4000
"""Training examples of a task that are looked at, chosen with its seed."""
HELD_OUT = 200
"""Of these a tenth is held out for the margin, this many at most."""


@dataclass(frozen=True, eq=False)
class Taken:
    """What is kept of a task's training inputs."""

    statistics: Statistics
    held_out: Tensor
    """float32 [inputs, d]: features of examples that the statistics have not seen."""

    def to_bytes(self) -> bytes:
        """The same bytes for the same values: safetensors, without a header of its own."""
        s = self.statistics
        tensors = {"count": torch.tensor([s.count]), "mean": s.mean, "scatter": s.scatter}
        return save({**tensors, "held_out": self.held_out})

    @classmethod
    def from_bytes(cls, data: bytes) -> Taken:
        """What ``to_bytes`` gave."""
        found = load(data)
        statistics = Statistics(int(found["count"]), found["mean"], found["scatter"])
        return cls(statistics, found["held_out"])


def take(shop: Workshop, spec: TaskSpec, data: TaskData) -> Taken:
    """Statistics of a task's training inputs in the base model."""
    draw = torch.Generator().manual_seed(spec.seed)
    chosen = torch.randperm(len(data.train), generator=draw)[:MOST].tolist()
    found = base_features(shop, spec, data, data.train.select(chosen))
    held = min(HELD_OUT, -(-len(found) // 10), len(found) - 1)
    return Taken(Statistics.from_features(found[held:]), found[:held].contiguous())


def base_features(shop: Workshop, spec: TaskSpec, data: TaskData, rows: Any) -> Tensor:
    """float32 [rows, d], by ``route.features`` as it is without options.

    Args:
        rows: encoded, of ``data``.
    """
    model = shop.model(spec, data.num_labels).to(device(spec))
    return features(model, _batches(spec, data, rows))


def _batches(spec: TaskSpec, data: TaskData, rows: Any) -> Iterator[dict[str, Any]]:
    if spec.settings.task_type == "causal-lm":
        rows = [_prompt(row) for row in rows]
    size = spec.training.per_device_eval_batch_size
    for batch in DataLoader(rows, batch_size=size, collate_fn=data.collator):
        yield {name: value for name, value in batch.items() if name != "labels"}


def _prompt(row: dict[str, list[int]]) -> dict[str, list[int]]:
    """What is there before the answer; a text without a prompt as it is."""
    ids = row["input_ids"]
    given = [i for i, y in zip(ids, row["labels"], strict=True) if y == IGNORED] or ids
    return {"input_ids": given, "attention_mask": [1] * len(given), "labels": given}
