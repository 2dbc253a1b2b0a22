"""Own LoRAs combined into one update for all tasks, or cut down, without any training.

Each task keeps the head of its own LoRA's training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sharespace.compare.bench import Own, Workbench
from sharespace.compare.job import Outcome, StoredBytes
from sharespace.compare.methods.own import one_step, own_lora, score_updates, seconds_of, steps_of
from sharespace.compare.methods.shared import build
from sharespace.compare.trainers import DEFAULT, add_lora, lora_layers, updates_of
from sharespace.extras import require
from sharespace.subspace.adapter import LayerUpdate
from sharespace.subspace.build_budgeted import own_svd as truncated
from sharespace.subspace.build_layer import read_updates
from sharespace.subspace.plan import own_ranks

Updates = Mapping[str, LayerUpdate]
"""Module -> update."""


def mean_adapter(bench: Workbench) -> Outcome:
    """One update for all tasks: the mean of their dW, exactly (rank: the sum of the ranks)."""
    return _one_for_all(bench, "mean_adapter", _sum(_own(bench), 1 / len(bench.tasks)))


def task_arithmetic(bench: Workbench) -> Outcome:
    """One update: lambda times the sum of all dW (Ilharco et al., arXiv 2212.04089).

    By PEFT's combination "cat", which is exact; its "linear" adds A and B each alone, which is not
    the sum of the updates.
    """
    merged = _by_peft(bench, "cat", bench.settings.arithmetic)
    return _one_for_all(bench, "task_arithmetic", merged)


def ties(bench: Workbench) -> Outcome:
    """One update by trimming, electing signs and averaging what agrees (Yadav et al., 2306.01708).

    By PEFT; lambda = 1. ``Settings.ties`` chooses between updates and factors.
    """
    merged = _by_peft(bench, bench.settings.ties, 1.0, density=bench.settings.density)
    return _one_for_all(bench, "ties", merged)


def own_svd(bench: Workbench) -> Outcome:
    """Every own LoRA cut by its own SVD, all together in the bytes that ``projection`` takes.

    The columns are split over modules and tasks by energy, as ``Share.baselines`` does.
    """
    own = _own(bench)
    adapters = [o.adapter for o in own.values()]
    ranks = own_ranks(build(bench, own).model, adapters)
    kept: dict[str, dict[str, LayerUpdate]] = {name: {} for name in own}
    for module, tasks in ranks.items():
        for name, rank in tasks.items():
            kept[name][module] = _truncate(own[name], module, rank)
    scores = {n: score_updates(bench, n, kept[n], own[n].adapter) for n in own}
    stored = sum(_bytes(updates) for updates in kept.values())
    return _outcome(bench, "own_svd", own, scores, stored)


def _truncate(own: Own, module: str, rank: int) -> LayerUpdate:
    updates = read_updates([own.adapter], module, torch.device("cpu"))
    value = truncated(updates, rank, torch.float32)
    return LayerUpdate(value.left, value.right.mT)


def _own(bench: Workbench) -> dict[str, Own]:
    return {name: own_lora(bench, name) for name in bench.tasks}


def _sum(own: Mapping[str, Own], weight: float) -> Updates:
    """weight times the sum of the updates, by stacking the factors."""
    adapters = [o.adapter for o in own.values()]
    return {
        module: LayerUpdate(
            torch.cat([weight * u.scaling * u.up for u in found], dim=1),
            torch.cat([u.down for u in found]),
        )
        for module in adapters[0].shapes
        if (found := [a.layer(module) for a in adapters])
    }


def _by_peft(bench: Workbench, combination: str, weight: float, **options: Any) -> Updates:
    """PEFT's combination of all own LoRAs."""
    own, first = _own(bench), bench.tasks[0]
    wrapped = add_lora(bench.fresh(first), bench.settings, ())
    try:
        # Names of tasks may have characters that names of modules cannot.
        names = [f"task{i}" for i in range(len(own))]
        for name, given in zip(names, own.values(), strict=True):
            wrapped.add_adapter(name, wrapped.peft_config[DEFAULT])
            _fill(wrapped, name, given)
        weights = [weight] * len(names)
        wrapped.base_model.add_weighted_adapter(
            names, weights, "merged", combination_type=combination, **options
        )
        return updates_of(wrapped, "merged")
    finally:
        require("sharespace.tuner", "train").release(wrapped)


@torch.no_grad()
def _fill(wrapped: Any, name: str, own: Own) -> None:
    for module, layer in lora_layers(wrapped, name).items():
        update = own.adapter.layer(module)
        up, down = layer.lora_B[name].weight, layer.lora_A[name].weight
        up.copy_(update.up.reshape(up.shape))
        down.copy_(update.down.reshape(down.shape))


def _one_for_all(bench: Workbench, method: str, updates: Updates) -> Outcome:
    own = _own(bench)
    scores = {n: score_updates(bench, n, updates, own[n].adapter) for n in bench.tasks}
    return _outcome(bench, method, own, scores, _bytes(updates))


def _bytes(updates: Updates) -> int:
    return sum(u.up.nbytes + u.down.nbytes for u in updates.values())


def _outcome(
    bench: Workbench, method: str, own: Mapping[str, Own], scores: Mapping[str, float], nbytes: int
) -> Outcome:
    return Outcome(
        method=method,
        matrix=one_step(scores),
        trainable={name: o.trainable for name, o in own.items()},
        heads=bench.head_numbers,
        stored=StoredBytes(adapters=nbytes, heads=bench.head_bytes),
        seconds=seconds_of(own),
        steps=steps_of(own),
    )
