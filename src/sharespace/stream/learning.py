"""How each kind of task comes into the Share model; nothing is written but initial LoRAs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from sharespace.formats import read_adapter
from sharespace.recipe import Recipe, TaskData, TaskSpec
from sharespace.share import Share
from sharespace.store import Operation
from sharespace.stream.lora import own_lora
from sharespace.stream.models import heads_of
from sharespace.stream.present import present
from sharespace.stream.records import Learned
from sharespace.stream.shop import Workshop
from sharespace.stream.subspace import adapted, full, train_on
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.merge import with_cap

_HEAD_PREFIX = "base_model.model."


def learn_first(
    shop: Workshop, specs: Sequence[TaskSpec], data: Mapping[str, TaskData]
) -> tuple[Share, tuple[Learned, ...]]:
    """The Share model of the initial tasks: of their adapters, or of LoRAs trained here.

    Args:
        data: task -> data, of those that have any.
    """
    adapters, learned = [], []
    for number, spec in enumerate(specs, 1):
        adapter, how = _first_adapter(shop, number, spec, data.get(spec.name))
        adapters.append(adapter)
        learned.append(how)
    share = _build(shop.recipe, adapters)
    for at, spec in enumerate(specs):
        if spec.learns and spec.adapter is not None:
            share, learned[at] = train_on(shop, share, spec, data[spec.name], learned[at])
        share, learned[at] = full(shop, share, spec, data.get(spec.name), learned[at])
    return share, tuple(_counted(shop.recipe, share, one) for one in learned)


def learn_next(
    shop: Workshop, share: Share, spec: TaskSpec, data: TaskData | None
) -> tuple[Share, tuple[Learned, ...]]:
    """The Share model with one more task: learned in the subspace, merged as an adapter, or both.

    Args:
        share: does not change.
        data: of the task; None: it has none.
    """
    labels = data.label_names if data else ()
    cap, base = spec.subspace.k, shop.recipe.base.text
    if spec.adapter is not None:
        learned = Learned(spec.name, "both" if spec.learns else "adapter", labels)
        adapter = _given(shop, spec, data)
        share = share.merge(adapter, k=cap, base=base)
        shop.say("merged", spec, "adapter merged")
        if spec.learns and data is not None:
            share, learned = train_on(shop, share, spec, data, learned)
    else:
        # A recipe's task has an adapter or data.
        adapter, learned = adapted(shop, share, spec, present(data, f"data of {spec.name!r}"))
        share = share.merge(adapter, k=cap, base=base)
        shop.say("merged", spec, "merged")
    share, learned = full(shop, share, spec, data, learned)
    return share, (_counted(shop.recipe, share, learned),)


def _first_adapter(
    shop: Workshop, number: int, spec: TaskSpec, data: TaskData | None
) -> tuple[Adapter, Learned]:
    if spec.adapter is None:
        return own_lora(shop, number, spec, present(data, f"data of {spec.name!r}"))
    labels = data.label_names if data else ()
    how = Learned(spec.name, "both" if spec.learns else "adapter", labels)
    return _given(shop, spec, data), how


def _given(shop: Workshop, spec: TaskSpec, data: TaskData | None) -> Adapter:
    """The adapter of the recipe; a new head for one that is to be trained and has none."""
    adapter = read_adapter(str(spec.adapter), spec.name)
    if not spec.learns or data is None or not data.num_labels or adapter.kept:
        return adapter
    model = shop.model(spec, data.num_labels)
    heads = heads_of(model)
    kept = {
        f"{_HEAD_PREFIX}{head}.{key}": value.detach().cpu().clone()
        for head in heads
        for key, value in getattr(model, head).state_dict().items()
    }
    return replace(adapter, kept=kept, config={**adapter.config, "modules_to_save": sorted(heads)})


def _build(recipe: Recipe, adapters: Sequence[Adapter]) -> Share:
    """The first subspace: k directions, or as many as the variance needs, k at most."""
    cap = max(spec.subspace.k for spec in recipe.tasks[: len(adapters)])
    options: dict[str, Any] = {
        "method": recipe.method,
        "base": recipe.base.text,
        "seed": recipe.seed,
        "dtype": getattr(torch, recipe.store_dtype) if recipe.store_dtype else None,
    }
    if recipe.variance is None:
        return Share.from_adapters(adapters, k=cap, **options)
    share = Share.from_adapters(adapters, variance=recipe.variance, **options)
    found = {m: layer.k for m, layer in share.model.layers.items()}
    if any(max(k) > cap for k in found.values()):
        limited = {m: (min(k[0], cap), min(k[1], cap)) for m, k in found.items()}
        share = Share.from_adapters(adapters, k=limited, **options)
    names = tuple(a.name for a in adapters)
    return Share(with_cap(share.model, cap), pending=(Operation("init", names),))


def _counted(recipe: Recipe, share: Share, learned: Learned) -> Learned:
    """With what a LoRA of the recipe's rank would train at the same modules."""
    shapes = [share.model.layers[m].shape for m in share.task(learned.task).coefficients]
    sides = sum(shape.out_features + shape.in_features for shape in shapes)
    return replace(learned, own_lora=recipe.lora_rank * sides)
