"""LoRA that goes on from what is known: each task's own, started from an earlier task's."""

from __future__ import annotations

from typing import Any

import torch

from sharespace.compare.bench import OwnLora, Workbench
from sharespace.compare.compared import compared_method
from sharespace.compare.job import Outcome, StoredBytes, TaskJob
from sharespace.compare.lora import (
    PREFIX,
    add_lora,
    count_trained,
    fill_lora,
    lora_bytes,
    read_adapter,
    trained_head,
)
from sharespace.learn import Fit
from sharespace.stream.measures import ScoreMatrix
from sharespace.tuner import release


@compared_method("warm_lora", short="warm", trains="warm")
def warm_lora(bench: Workbench) -> Outcome:
    """Every task's own LoRA, started from the LoRA of the task before it, with that task's head
    where both have the same labels in one order; the first starts from nothing.

    It is what Share's starts from known tasks are measured against: transfer without a subspace.
    All LoRAs are stored, as with ``per_task_lora``.
    """
    before: OwnLora | None = None
    scores: dict[str, float] = {}
    trainable: dict[str, int] = {}
    fits: list[Fit | None] = []
    nbytes = 0
    for name, job in bench.jobs.items():
        if before is None:
            warm = bench.own_lora(name)
            nbytes += _bytes(warm)
        else:
            wrapped = add_lora(bench.fresh(name), bench.settings, job.heads)
            try:
                fill_lora(wrapped, before.adapter)
                _copy_heads(wrapped, bench.job(before.adapter.name), job, before)
                numbers = count_trained(wrapped, job.heads)
                nbytes += lora_bytes(wrapped)
                fitted = bench.train(name, wrapped, bench.settings.warm or bench.settings.lora)
                score = bench.score(name, wrapped)
                adapter = read_adapter(wrapped, job, bench.settings)
                warm = OwnLora(adapter, score, fitted, numbers)
            finally:
                release(wrapped)
        scores[name], trainable[name] = warm.score, warm.trainable
        fits.append(warm.fit)
        before = warm
    stored = StoredBytes(adapters=nbytes)
    return bench.outcome(ScoreMatrix.of_one_step(scores), trainable, fits, stored)


def _bytes(own: OwnLora) -> int:
    updates = (own.adapter.layer(module) for module in own.adapter.shapes)
    return sum(u.up.nbytes + u.down.nbytes for u in updates)


@torch.no_grad()
def _copy_heads(wrapped: Any, known: TaskJob, job: TaskJob, own: OwnLora) -> None:
    """Give a model the heads of a known task, where both have the same labels in one order."""
    if not job.labels or job.labels != known.labels:
        return
    for head in job.heads:
        for key, value in trained_head(wrapped, head).state_dict(keep_vars=True).items():
            value.copy_(own.adapter.kept[f"{PREFIX}{head}.{key}"])
