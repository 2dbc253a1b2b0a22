"""O-LoRA: a new LoRA for each task, kept orthogonal to the earlier ones.

Wang et al., "Orthogonal Subspace Learning for Language Model Continual Learning", arXiv 2310.14152.
PEFT has no such method (its "olora" is another), so these are our own few lines on the Trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sharespace.compare.bench import Workbench
from sharespace.compare.compared import compared_method
from sharespace.compare.job import Outcome, StoredBytes, TaskJob
from sharespace.compare.lora import DEFAULT, add_lora, count_trained, lora_bytes, lora_layers
from sharespace.compare.trainers import penalised
from sharespace.learn import Fit, fit


@compared_method("o_lora", paper="https://arxiv.org/abs/2310.14152", short="o-lora", trains="lora")
def o_lora(bench: Workbench) -> Outcome:
    """Loss + lambda_1 sum_{i<t} sum |A_i A_t^T| over the modules; earlier LoRAs frozen and summed.

    The absolute values are those of the authors' code (the paper's equation has squares), lambda_1
    = 0.5 theirs; lambda_2 is 0. Earlier LoRAs are added into the base weights for the time of the
    run, as the paper proposes to save memory. Every old task is used with all LoRAs, later ones
    included, so it can be forgotten. The model grows by a LoRA a task: all are counted.
    """
    downs: dict[str, list[Tensor]] = {}
    models: dict[str, nn.Module] = {name: bench.fresh(name) for name in bench.tasks}
    trainable: dict[str, int] = {}
    nbytes = 0

    def learn(job: TaskJob) -> Fit:
        nonlocal nbytes
        # A new start for each task: the same A again would be as far from orthogonal as can be.
        settings = replace(bench.settings, seed=bench.settings.seed + len(trainable))
        wrapped = add_lora(models[job.name], settings, job.heads)
        trainable[job.name] = count_trained(wrapped, job.heads)
        nbytes += lora_bytes(wrapped)
        fitted = _train(bench, job, wrapped, downs)
        for name, layer in lora_layers(wrapped).items():
            down = layer.lora_A[DEFAULT].weight.detach().flatten(1).clone()
            downs.setdefault(name, []).append(down)
        models[job.name] = wrapped.merge_and_unload()
        return fitted

    with bench.changing_backbone(bench.target_shapes()):
        matrix, fits = bench.learn_in_order(models, learn)
    return bench.outcome(matrix, trainable, fits, StoredBytes(adapters=nbytes))


def _train(bench: Workbench, job: TaskJob, wrapped: Any, downs: Mapping[str, list[Tensor]]) -> Fit:
    """Train a new LoRA, kept away from the earlier tasks' A (module -> r x d each)."""
    setup, weight = job.setup, bench.settings.orthogonality
    if downs:
        trainer = penalised(setup.trainer, lambda: weight * overlap(wrapped, downs))
        setup = replace(setup, trainer=trainer)
    fitted = fit(wrapped, job.data, bench.settings.training(bench.settings.lora, job), setup)
    bench.restore_buffers(job.name, wrapped)
    return fitted


def overlap(wrapped: Any, downs: Mapping[str, list[Tensor]]) -> Tensor:
    """The sum over modules and earlier tasks of sum_jk |A_i A_t^T|_jk, with a gradient.

    Args:
        wrapped: the ``PeftModel`` of the new task, whose A_t is trained.
        downs: module -> the earlier tasks' A_i, each r x d.
    """
    terms = []
    for name, layer in lora_layers(wrapped).items():
        new = layer.lora_A[DEFAULT].weight.flatten(1)
        earlier = torch.cat([down.to(new.device) for down in downs[name]])
        terms.append((earlier @ new.mT).abs().sum())
    return torch.stack(terms).sum()
