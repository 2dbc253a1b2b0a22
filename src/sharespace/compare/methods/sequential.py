"""One LoRA that learns task after task, each with a head of its own that stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sharespace.compare.bench import Workbench
from sharespace.compare.job import Outcome, StoredBytes, TaskJob
from sharespace.compare.methods.own import train
from sharespace.compare.trainers import add_lora, count, lora_layers, tie
from sharespace.extras import require
from sharespace.learn import Fit
from sharespace.stream.measures import ScoreMatrix
from sharespace.subspace.layer import tensor_bytes

Models = dict[str, Any]
"""Task -> ``PeftModel`` with its own head; all have the same LoRA parameters."""
TrainOne = Callable[[TaskJob, Models], Fit]
"""Train the LoRA and one task's head."""


def sequential_lora(bench: Workbench) -> Outcome:
    """Plain fine-tuning, one task after the other: what continual learning is measured against."""

    def train_one(job: TaskJob, models: Models) -> Fit:
        return train(bench, job, models[job.name], bench.settings.lora)

    return in_sequence(bench, "sequential_lora", train_one)


def in_sequence(
    bench: Workbench,
    method: str,
    train_one: TrainOne,
    *,
    state: Callable[[], int] = lambda: 0,
    uses_old_data: bool = False,
) -> Outcome:
    """Learn the tasks in order with one LoRA; score all known ones after each.

    Args:
        method: its name.
        train_one: learns one task.
        state: bytes that learning further tasks needs, asked for at the end.
        uses_old_data: for the outcome.
    """
    models = tied_models(bench)
    numbers = {n: count(m, bench.job(n).heads) for n, m in models.items()}
    matrix, fits, known = ScoreMatrix(bench.tasks), [], []
    try:
        for name, job in bench.jobs.items():
            fits.append(train_one(job, models))
            known.append(name)
            scores = {other: bench.score(other, models[other]) for other in known}
            matrix = matrix.with_step(name, scores, learned=[name])
        stored = lora_bytes(models[bench.tasks[0]])
    finally:
        release_all(models)
    return Outcome(
        method=method,
        matrix=matrix,
        trainable=numbers,
        heads=bench.head_numbers,
        stored=StoredBytes(adapters=stored, heads=bench.head_bytes, state=state()),
        seconds=sum(f.seconds for f in fits),
        steps=sum(f.steps for f in fits),
        uses_old_data=uses_old_data,
    )


def tied_models(bench: Workbench) -> Models:
    """All tasks' models with one LoRA between them, and fresh heads."""
    models = {
        name: add_lora(bench.fresh(name), bench.settings, job.heads)
        for name, job in bench.jobs.items()
    }
    tie(list(models.values()))
    return models


def release_all(models: Models) -> None:
    """Take the LoRA out of all of them."""
    for model in models.values():
        require("sharespace.tuner", "train").release(model)


def lora_bytes(wrapped: Any) -> int:
    """Of one LoRA's factors."""
    return sum(
        tensor_bytes(layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        for layer in lora_layers(wrapped).values()
    )
