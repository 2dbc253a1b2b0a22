"""Own LoRAs combined into one update for all tasks, or cut down, without any training.

Each task keeps the head of its own LoRA's training.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sharespace.compare.bench import OwnLora, Workbench
from sharespace.compare.compared import compared_method
from sharespace.compare.job import Outcome, StoredBytes
from sharespace.compare.lora import DEFAULT, add_lora, fill_lora, updates_of
from sharespace.compare.methods.share_stream import build_share
from sharespace.stream.measures import ScoreMatrix
from sharespace.subspace.adapter import LayerUpdate
from sharespace.subspace.build_budgeted import own_svd as truncated
from sharespace.subspace.build_layer import read_updates
from sharespace.subspace.layer import tensor_bytes
from sharespace.subspace.plan import own_ranks
from sharespace.tuner import release


@compared_method("mean_adapter", short="mean")
def mean_adapter(bench: Workbench) -> Outcome:
    """One update for all tasks: the mean of their dW, exactly (rank: the sum of the ranks)."""
    adapters = [lora.adapter for lora in bench.own_loras().values()]
    weight = 1 / len(adapters)
    # The mean of products is the product of stacked factors.
    updates = {
        module: LayerUpdate(
            torch.cat([weight * u.scaling * u.up for u in of_tasks], dim=1),
            torch.cat([u.down for u in of_tasks]),
        )
        for module in adapters[0].shapes
        if (of_tasks := [adapter.layer(module) for adapter in adapters])
    }
    return _one_for_all(bench, updates)


@compared_method(
    "task_arithmetic", paper="https://arxiv.org/abs/2212.04089", short="task-arithmetic"
)
def task_arithmetic(bench: Workbench) -> Outcome:
    """One update: lambda times the sum of all dW (Ilharco et al., arXiv 2212.04089).

    By PEFT's combination "cat", which is exact; its "linear" adds A and B each alone, which is not
    the sum of the updates.
    """
    return _one_for_all(bench, _combined(bench, "cat", bench.settings.arithmetic))


@compared_method("ties", paper="https://arxiv.org/abs/2306.01708")
def ties(bench: Workbench) -> Outcome:
    """One update by trimming, electing signs and averaging what agrees (Yadav et al., 2306.01708).

    By PEFT; lambda = 1. ``ComparisonSettings.ties`` chooses between updates and factors.
    """
    settings = bench.settings
    return _one_for_all(bench, _combined(bench, settings.ties, 1.0, density=settings.density))


@compared_method("own_svd")
def own_svd(bench: Workbench) -> Outcome:
    """Every own LoRA cut by its own SVD, all of them in the bytes that ``projection`` takes.

    The columns are split over modules and tasks by energy, as ``Share.baselines`` does.
    """
    own = bench.own_loras()
    adapters = [lora.adapter for lora in own.values()]
    ranks = own_ranks(build_share(bench, own).model, adapters)
    updates: dict[str, dict[str, LayerUpdate]] = {name: {} for name in own}
    for module, of_tasks in ranks.items():
        for name, rank in of_tasks.items():
            updates[name][module] = _cut(own[name], module, rank)
    scores = {n: bench.score_updates(n, updates[n], own[n].adapter) for n in own}
    return _outcome(bench, scores, sum(_bytes(of_task) for of_task in updates.values()))


def _cut(own: OwnLora, module: str, rank: int) -> LayerUpdate:
    """A module's update with its largest singular values alone."""
    updates = read_updates([own.adapter], module, torch.device("cpu"))
    value = truncated(updates, rank, torch.float32)
    return LayerUpdate(value.left, value.right.mT)


def _combined(
    bench: Workbench, combination: str, weight: float, **options: float
) -> dict[str, LayerUpdate]:
    """Module -> update: PEFT's combination of all own LoRAs."""
    own, first = bench.own_loras(), bench.tasks[0]
    wrapped = add_lora(bench.fresh(first), bench.settings, ())
    try:
        # Names of tasks may have characters that names of modules cannot.
        names = [f"task{i}" for i in range(len(own))]
        for name, lora in zip(names, own.values(), strict=True):
            wrapped.add_adapter(name, wrapped.peft_config[DEFAULT])
            fill_lora(wrapped, lora.adapter, name)
        weights = [weight] * len(names)
        wrapped.base_model.add_weighted_adapter(
            names, weights, "merged", combination_type=combination, **options
        )
        return updates_of(wrapped, "merged")
    finally:
        release(wrapped)


def _one_for_all(bench: Workbench, updates: Mapping[str, LayerUpdate]) -> Outcome:
    """The outcome of one update (module -> update) that all tasks use."""
    own = bench.own_loras()
    scores = {n: bench.score_updates(n, updates, own[n].adapter) for n in bench.tasks}
    return _outcome(bench, scores, _bytes(updates))


def _outcome(bench: Workbench, scores: Mapping[str, float], nbytes: int) -> Outcome:
    own = bench.own_loras()
    return bench.outcome(
        ScoreMatrix.of_one_step(scores),
        {name: lora.trainable for name, lora in own.items()},
        [lora.fit for lora in own.values()],
        StoredBytes(adapters=nbytes),
    )


def _bytes(updates: Mapping[str, LayerUpdate]) -> int:
    return sum(tensor_bytes(u.up, u.down) for u in updates.values())
