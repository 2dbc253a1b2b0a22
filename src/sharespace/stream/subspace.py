"""A task trained in the subspace: from data alone, or further on its coefficients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sharespace.extras import require
from sharespace.learn import Method, adapt, finetune
from sharespace.learn.quiet import seeded
from sharespace.recipe import TaskData, TaskSpec
from sharespace.share import Share
from sharespace.stream.models import PEFT_TYPES, heads_of_task
from sharespace.stream.records import Learned
from sharespace.stream.shop import Workshop
from sharespace.stream.training import setup_for, training_for
from sharespace.subspace.adapter import Adapter


def adapted(
    shop: Workshop, share: Share, spec: TaskSpec, data: TaskData
) -> tuple[Adapter, Learned]:
    """A task learned from data in the subspace (method.md, step 2)."""
    shop.say("learning", spec, f"learning in the subspace from {len(data.train)} examples")
    model = shop.model(spec, data.num_labels)
    method = Method(
        p=spec.subspace.p,
        phi=spec.subspace.phi,
        form=spec.subspace.form,
        directions=spec.subspace.directions,
        head_steps=spec.subspace.head_steps,
        start=spec.subspace.start,
        heads=heads_of_task(model, data.num_labels),
        seed=spec.seed,
        task_type=PEFT_TYPES[spec.settings.task_type],
    )
    training = training_for(spec, data, shop.folder.trackers(spec.name), bars=shop.bars)
    setup = setup_for(spec, data)
    with seeded(spec.seed):
        found = adapt(
            model, share, data.train, training, task=spec.name, method=method, setup=setup
        )
    shop.tidy(spec)
    require("sharespace.nn", "train").release(found.model)
    learned = Learned(spec.name, "data", data.label_names, start=found.start)
    learned = replace(learned, **learned.trained(found.fit, found.trainable))
    shop.say("learned", spec, f"learned, {learned.told}")
    return found.adapter, learned


def train_on(
    shop: Workshop,
    share: Share,
    spec: TaskSpec,
    data: TaskData,
    learned: Learned,
    **changed: Any,
) -> tuple[Share, Learned]:
    """A known task's coefficients and head trained further, the bases frozen."""
    shop.say("learning", spec, f"training its coefficients on {len(data.train)} examples")
    trackers = shop.folder.trackers(spec.name)
    training = training_for(spec, data, trackers, bars=shop.bars, **changed)
    setup = setup_for(spec, data)
    if "max_steps" in changed:
        setup = replace(setup, evaluation=None, metrics=None)
    model = shop.model(spec, data.num_labels)
    with seeded(spec.seed):
        found = finetune(model, share, data.train, training, task=spec.name, setup=setup)
    shop.tidy(spec)
    require("sharespace.nn", "train").release(found.model)
    first = None if learned.steps else found.trainable
    learned = replace(learned, **learned.trained(found.fit, first))
    shop.say("learned", spec, f"coefficients trained, {learned.told}")
    return found.share, learned


def full(
    shop: Workshop, share: Share, spec: TaskSpec, data: TaskData | None, learned: Learned
) -> tuple[Share, Learned]:
    """Share-full: once more after the merge, where the recipe says so and there is data."""
    recipe = shop.recipe
    if not recipe.finetune or not spec.learns or data is None:
        return share, learned
    return train_on(
        shop,
        share,
        spec,
        data,
        learned,
        max_steps=recipe.finetune_max_steps,
        learning_rate=recipe.finetune_learning_rate,
    )
