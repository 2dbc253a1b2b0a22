"""O-LoRA: a new LoRA for each task, kept orthogonal to the earlier ones.

Wang et al., "Orthogonal Subspace Learning for Language Model Continual Learning", arXiv 2310.14152.
PEFT has no such method (its "olora" is another), so these are our own few lines on the Trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sharespace.compare.bench import Workbench
from sharespace.compare.job import Outcome, StoredBytes, TaskJob
from sharespace.compare.methods.sequential import lora_bytes
from sharespace.compare.trainers import (
    DEFAULT,
    add_lora,
    count,
    lora_layers,
    penalised,
    target_shapes,
)
from sharespace.learn import Fit, fit
from sharespace.stream.measures import ScoreMatrix

Downs = dict[str, list[Tensor]]
"""Module -> the earlier tasks' A, each r x d."""


def o_lora(bench: Workbench) -> Outcome:
    """Loss + lambda_1 sum_{i<t} sum |A_i A_t^T| over the modules; earlier LoRAs frozen and summed.

    The absolute values are those of the authors' code (the paper's equation has squares), lambda_1
    = 0.5 theirs; lambda_2 is 0. Earlier LoRAs are added into the base weights for the time of the
    run, as the paper proposes to save memory. Every old task is used with all LoRAs, later ones
    included, so it can be forgotten. The model grows by a LoRA a task: all are counted.
    """
    downs: Downs = {}
    matrix, stored = ScoreMatrix(bench.tasks), 0
    fits: list[Fit] = []
    numbers: dict[str, int] = {}
    models = {name: bench.fresh(name) for name in bench.tasks}
    with bench.changing_backbone(target_shapes(bench)):
        for name, job in bench.jobs.items():
            wrapped = add_lora(models[name], _settings_of(bench, len(fits)), job.heads)
            numbers[name], stored = count(wrapped, job.heads), stored + lora_bytes(wrapped)
            fits.append(_train(bench, job, wrapped, downs))
            _remember(wrapped, downs)
            models[name] = wrapped.merge_and_unload()
            scores = {known: bench.score(known, models[known]) for known in numbers}
            matrix = matrix.with_step(name, scores, learned=[name])
    return Outcome(
        method="o_lora",
        matrix=matrix,
        trainable=numbers,
        heads=bench.head_numbers,
        stored=StoredBytes(adapters=stored, heads=bench.head_bytes),
        seconds=sum(f.seconds for f in fits),
        steps=sum(f.steps for f in fits),
    )


def _settings_of(bench: Workbench, step: int) -> Any:
    """A new start for each task: the same A again would be as far from orthogonal as can be."""
    return replace(bench.settings, seed=bench.settings.seed + step)


def _train(bench: Workbench, job: TaskJob, wrapped: Any, downs: Downs) -> Fit:
    setup, weight = job.setup, bench.settings.orthogonality
    if downs:
        trainer = penalised(setup.trainer, lambda: weight * overlap(wrapped, downs))
        setup = replace(setup, trainer=trainer)
    training = bench.settings.training(bench.settings.lora, job)
    result = fit(wrapped, job.data, training, setup)
    bench.restore_buffers(job.name, wrapped)
    return result


def overlap(wrapped: Any, downs: Mapping[str, list[Tensor]]) -> Tensor:
    """sum over modules and earlier tasks of sum_jk |A_i A_t^T|_jk."""
    terms = []
    for name, layer in lora_layers(wrapped).items():
        new = layer.lora_A[DEFAULT].weight.flatten(1)
        earlier = torch.cat([down.to(new.device) for down in downs[name]])
        terms.append((earlier @ new.mT).abs().sum())
    return torch.stack(terms).sum()


def _remember(wrapped: Any, downs: Downs) -> None:
    for name, layer in lora_layers(wrapped).items():
        down = layer.lora_A[DEFAULT].weight.detach().flatten(1).clone()
        downs.setdefault(name, []).append(down)
