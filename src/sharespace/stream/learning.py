"""How each kind of task comes into the Share model; nothing is written but initial LoRAs.

A task trained in the subspace: from data alone, or further on its coefficients.

An initial task's LoRA of its own, trained by PEFT and kept in the run's folder.

What learning needs beside a task: processors, data and base models, each read once.

Would every task of a recipe fit its base model? Asked before anything is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from sharespace.errors import MismatchError, RecipeError, SharespaceError
from sharespace.extras import require
from sharespace.formats import read_adapter
from sharespace.formats.atomic_dir import new_directory
from sharespace.learn import Method, adapt, finetune, fit
from sharespace.learn.training import seeded
from sharespace.share import Share
from sharespace.store import Operation
from sharespace.stream.folder import RunFolder
from sharespace.stream.models import (
    PEFT_TYPES,
    BaseModels,
    heads_of,
    heads_of_task,
    num_labels,
    setup_for,
    skeleton,
    training_for,
)
from sharespace.stream.recipe import (
    Recipe,
    TaskCheck,
    TaskData,
    TaskSpec,
    check,
    load_processor,
    load_task_data,
)
from sharespace.stream.records import Event, Learned, Observer, present
from sharespace.subspace.adapter import LEARNED, Adapter
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
        share = share.merge(adapter, cap=cap, base=base)
        shop.say("merged", spec, "adapter merged")
        if spec.learns and data is not None:
            share, learned = train_on(shop, share, spec, data, learned)
    else:
        # A recipe's task has an adapter or data.
        adapter, learned = adapted(shop, share, spec, present(data, f"data of {spec.name!r}"))
        share = share.merge(adapter, cap=cap, base=base)
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
    require("sharespace.tuner", "train").release(found.model)
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
    require("sharespace.tuner", "train").release(found.model)
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


def own_lora(
    shop: Workshop, number: int, spec: TaskSpec, data: TaskData
) -> tuple[Adapter, Learned]:
    """The LoRA of the initial task of that number (from 1): trained, or kept from before a kill."""
    path = shop.folder.initial_adapter(number, spec.name)
    counts = shop.folder.counts(path)
    if counts is None:
        learned = _train(shop, number, spec, data)
    else:
        learned = Learned(**{**counts, "labels": tuple(counts["labels"])})
    return _as_learned(shop.recipe, read_adapter(path, spec.name)), learned


def _train(shop: Workshop, number: int, spec: TaskSpec, data: TaskData) -> Learned:
    """Train a LoRA by PEFT; it is on disk, whole, when this returns."""
    recipe, peft = shop.recipe, require("peft", "train")
    path = shop.folder.initial_adapter(number, spec.name)
    shop.say("learning", spec, f"training its own LoRA on {len(data.train)} examples")
    training = training_for(
        spec,
        data,
        shop.folder.trackers(spec.name),
        learning_rate=recipe.lora_learning_rate,
        bars=shop.bars,
    )
    base = shop.model(spec, data.num_labels)
    with seeded(spec.seed):
        model = peft.get_peft_model(
            base, lora_config(recipe, spec, heads_of_task(base, data.num_labels))
        )
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        result = fit(model, data.train, training, setup_for(spec, data))
    shop.tidy(spec)
    lora = sum(p.numel() for n, p in trained if ".lora_" in n)
    heads = sum(p.numel() for _, p in trained) - lora
    learned = Learned(spec.name, "lora", data.label_names, lora=lora, heads=heads)
    learned = replace(learned, **learned.trained(result))
    shop.folder.keep_counts(path, _plain(learned))
    model.peft_config["default"].base_model_name_or_path = recipe.base.text
    with new_directory(path) as aside:
        model.save_pretrained(aside, save_embedding_layers=False)
    require("sharespace.tuner", "train").release(model)
    shop.say("kept", spec, f"own LoRA trained, {learned.told}")
    return learned


def lora_config(recipe: Recipe, spec: TaskSpec, heads: Sequence[str]) -> Any:
    """PEFT's configuration of an initial task's LoRA."""
    targets = recipe.target_modules
    only = targets[0] if targets == ("all-linear",) else None
    return require("peft", "train").LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=only or (list(targets) if targets else None),
        modules_to_save=list(heads) or None,
        task_type=PEFT_TYPES[spec.settings.task_type],
    )


def _as_learned(recipe: Recipe, adapter: Adapter) -> Adapter:
    """Without paths of this machine, and without the order of PEFT's sets, which changes."""
    names = {n: adapter.config.get(n) for n in ("target_modules", "modules_to_save")}
    ordered = {n: sorted(set(v)) for n, v in names.items() if isinstance(v, list)}
    config = {**adapter.config, **ordered, "base_model_name_or_path": recipe.base.text}
    return replace(adapter, config=config, provenance=LEARNED)


def _plain(learned: Learned) -> dict[str, Any]:
    return {**vars(learned), "labels": list(learned.labels)}


@dataclass(eq=False)
class Workshop:
    """At hand while a stream is at work."""

    recipe: Recipe
    folder: RunFolder
    models: BaseModels
    observe: Observer
    bars: bool = False

    @cached_property
    def _processors(self) -> dict[str, Any]:
        return {}

    def processor(self, spec: TaskSpec) -> Any:
        """The tokenizer or image processor for a task."""
        kind = spec.settings.task_type
        if kind not in self._processors:
            self._processors[kind] = load_processor(self.recipe, kind)
        return self._processors[kind]

    def data(self, spec: TaskSpec) -> TaskData:
        """A task's data, read now.

        Raises:
            RecipeError: it is gone, or cannot be used.
        """
        return load_task_data(spec, self.processor(spec))

    def model(self, spec: TaskSpec, outputs: int) -> Any:
        """The base model with a new head, which pads as the tokenizer does."""
        model: Any = self.models.model(spec, outputs)
        if getattr(model.config, "pad_token_id", None) is None:
            pad = getattr(self.processor(spec), "pad_token_id", None)
            model.config.pad_token_id = pad
        return model

    def say(self, stage: Any, spec: TaskSpec, text: str) -> None:
        """Tell of something that has happened to a task."""
        self.observe(Event(stage, spec.name, f"{spec.name}: {text}"))

    def tidy(self, spec: TaskSpec) -> None:
        """Remove Trainer's checkpoints of early stopping; what trackers wrote stays."""
        for folder in self.folder.trackers(spec.name).glob("checkpoint-*"):
            shutil.rmtree(folder)


def check_stream(recipe: Recipe, done: Sequence[str], observe: Observer) -> None:
    """All that ``recipe.check`` asks, and: do adapters, heads and target modules fit the model?

    Args:
        done: tasks that are learned.

    Raises:
        RecipeError: something does not fit; all problems are listed.
        MissingExtraError: peft, transformers, accelerate or datasets is not installed.
    """
    for module in ("transformers", "peft", "accelerate", "datasets"):
        require(module, "train")
    where = str(recipe.file or "recipe")
    if recipe.router and not any(spec.learns for spec in recipe.tasks):
        why = "router: no task has data to learn from, and adapters do not show their inputs"
        raise RecipeError(where, (why,), "Leave it out, or give a task data")
    found = check(recipe, done=done, progress=lambda name: _say(observe, name))
    for kind in dict.fromkeys(s.settings.task_type for s in recipe.tasks if s.data is not None):
        load_processor(recipe, kind)
    problems = [p for one in found for p in _task_problems(recipe, one)]
    if problems:
        raise RecipeError(where, tuple(problems))


def _say(observe: Observer, name: str) -> None:
    observe(Event("checking", name, f"{name}: checking"))


def _task_problems(recipe: Recipe, found: TaskCheck) -> Iterator[str]:
    spec = present(recipe.task(found.name), f"task {found.name!r} of the recipe")
    outputs = num_labels(spec, found.labels)
    model = skeleton(recipe, spec, outputs or 2)
    if spec.adapter is not None:
        adapter = read_adapter(str(spec.adapter), spec.name)
        yield from _module_problems(spec, adapter, model)
        if spec.data is not None:
            yield from _head_problems(spec, adapter, model, bool(outputs))
    elif recipe.tasks.index(spec) < recipe.initial:
        yield from _target_problems(recipe, spec, model, bool(outputs))


def _module_problems(spec: TaskSpec, adapter: Adapter, model: Any) -> Iterator[str]:
    """One line for the first module of the adapter that the base model lacks."""
    fits = require("sharespace.tuner.modules", "train").adapted_module
    try:
        for module, shape in adapter.shapes.items():
            fits(model, module, (shape.out_features, shape.in_features))
    except MismatchError as error:
        yield _problem(spec, "adapter", f"{error.what} {error.why}")


def _head_problems(spec: TaskSpec, adapter: Adapter, model: Any, has_head: bool) -> Iterator[str]:
    """What it carries beside the updates must be a head of this model, of this size."""
    parameters = dict(model.named_parameters())
    heads = tuple(f"{name}." for name in heads_of(model)) if has_head else ()
    for key in adapter.kept:
        name = key.removeprefix(_HEAD_PREFIX)
        if not name.startswith(heads or ("\0",)) or name not in parameters:
            yield _problem(spec, "adapter", f"it carries {name!r}, no head of the base model")
        elif adapter.kept[key].shape != parameters[name].shape:
            have, need = tuple(adapter.kept[key].shape), tuple(parameters[name].shape)
            yield _problem(spec, "adapter", f"its head {name!r} is {have}, the data needs {need}")
    if spec.eval_only and has_head and not adapter.kept:
        yield _problem(spec, "eval_only", "the adapter has no head to score with")


def _target_problems(recipe: Recipe, spec: TaskSpec, model: Any, has_head: bool) -> Iterator[str]:
    """Can PEFT put the LoRAs of the initial tasks where the recipe says?"""
    heads = heads_of(model) if has_head else ()
    try:
        require("peft", "train").get_peft_model(model, lora_config(recipe, spec, heads))
    except (ValueError, TypeError, SharespaceError) as error:
        reason = " ".join(str(error).split())[:200]
        yield _problem(spec, "target_modules", f"no LoRA can be made ({reason})")


def _problem(spec: TaskSpec, key: str, why: str) -> str:
    line = f"line {spec.line}: " if spec.line else ""
    return f"{line}task {spec.name!r}, {key}: {why}"
