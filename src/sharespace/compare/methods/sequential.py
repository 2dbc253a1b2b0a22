"""One LoRA that learns task after task, each with a head of its own that stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sharespace.compare.bench import Workbench
from sharespace.compare.compared import compared_method
from sharespace.compare.job import Outcome, StoredBytes, TaskJob
from sharespace.compare.lora import add_lora, count_trained, lora_bytes, tie
from sharespace.learn import Fit
from sharespace.tuner import release

TaskModels = dict[str, Any]
"""Task -> ``PeftModel`` with its own head; all have the same LoRA parameters."""

TrainOne = Callable[[TaskJob, TaskModels], Fit]
"""Trains the LoRA and one task's head."""


@compared_method("sequential_lora", short="sequential", trains="lora")
def sequential_lora(bench: Workbench) -> Outcome:
    """Plain fine-tuning, one task after the other: what continual learning is measured against."""

    def train_one(job: TaskJob, models: TaskModels) -> Fit:
        return bench.train(job.name, models[job.name], bench.settings.lora)

    return in_sequence(bench, train_one)


def in_sequence(
    bench: Workbench, train_one: TrainOne, *, state: Callable[[], int] = lambda: 0
) -> Outcome:
    """Learn the tasks in order with one LoRA; score all known ones after each.

    Args:
        bench: the tasks.
        train_one: learns one task.
        state: bytes that learning further tasks needs, asked for at the end.
    """
    models = tied_models(bench)
    trainable = {name: count_trained(m, bench.job(name).heads) for name, m in models.items()}
    try:
        matrix, fits = bench.learn_in_order(models, lambda job: train_one(job, models))
        stored = StoredBytes(adapters=lora_bytes(models[bench.tasks[0]]), state=state())
    finally:
        release_all(models)
    return bench.outcome(matrix, trainable, fits, stored)


def tied_models(bench: Workbench) -> TaskModels:
    """All tasks' models with one LoRA between them, and fresh heads."""
    models = {
        name: add_lora(bench.fresh(name), bench.settings, job.heads)
        for name, job in bench.jobs.items()
    }
    tie(list(models.values()))
    return models


def release_all(models: TaskModels) -> None:
    """Take the LoRA out of all models."""
    for model in models.values():
        release(model)
