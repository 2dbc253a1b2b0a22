"""How a recipe's tasks come into the Share model; nothing is written but initial tasks' LoRAs.

A first task comes as the recipe's adapter or as a LoRA that is trained here; a later one as the
recipe's adapter or learned from data in the subspace. Either may be trained further once it is
merged. ``check_stream`` asks beforehand whether every task fits its base model.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sharespace.errors import MismatchError, RecipeError, SharespaceError
from sharespace.extras import require
from sharespace.files import new_directory
from sharespace.formats import read_adapter
from sharespace.learn import TrainingSettings, adapt, finetune, fit
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
from sharespace.stream.records import Event, Learned, Observer, Stage, present
from sharespace.subspace.adapter import LEARNED, Adapter
from sharespace.subspace.merge import with_cap

_HEAD_PREFIX = "base_model.model."
"""Before the names of heads' tensors in PEFT's files."""


@dataclass(eq=False)
class Workshop:
    """What learning needs beside a task: processors, data and base models, each read once."""

    recipe: Recipe
    folder: RunFolder
    models: BaseModels
    observe: Observer
    bars: bool = False
    """Show Trainer's progress bars."""
    _processors: dict[str, Any] = field(default_factory=dict)

    def spec(self, task: str) -> TaskSpec:
        """What the recipe says of a task that it has."""
        return present(self.recipe.task(task), f"task {task!r} of the recipe")

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

    def training(self, spec: TaskSpec, data: TaskData, **changed: Any) -> TrainingSettings:
        """How a task is trained; see ``training_for``."""
        return training_for(spec, data, self.folder.trackers(spec.name), bars=self.bars, **changed)

    def say(self, stage: Stage, spec: TaskSpec, text: str) -> None:
        """Tell the observer of something that has happened to a task."""
        self.observe(Event(stage, spec.name, f"{spec.name}: {text}"))

    def remove_checkpoints(self, spec: TaskSpec) -> None:
        """Remove Trainer's checkpoints of early stopping; what trackers wrote stays."""
        for folder in self.folder.trackers(spec.name).glob("checkpoint-*"):
            shutil.rmtree(folder)


def first_adapter(
    shop: Workshop, number: int, spec: TaskSpec, data: TaskData | None
) -> tuple[Adapter, Learned]:
    """The adapter that an initial task, the one of that number (from 1), has in the first subspace.

    It is the recipe's, or a LoRA that is trained here: a kill after that does not lose it.
    """
    if spec.adapter is not None:
        return _recipe_adapter(shop, spec, data)
    path = shop.folder.initial_adapter(number, spec.name)
    counts = shop.folder.counts(path)
    if counts is None:
        learned = _train_lora(shop, path, spec, present(data, f"data of {spec.name!r}"))
    else:
        learned = Learned(**{**counts, "labels": tuple(counts["labels"])})
    return _reproducible(shop.recipe, read_adapter(path, spec.name)), learned


def next_adapter(
    shop: Workshop, share: Share, spec: TaskSpec, data: TaskData | None
) -> tuple[Adapter, Learned]:
    """The adapter of a later task, to be merged: the recipe's, or learned in the subspace."""
    if spec.adapter is not None:
        return _recipe_adapter(shop, spec, data)
    return _learn_in_subspace(shop, share, spec, present(data, f"data of {spec.name!r}"))


def trained_after_merge(
    shop: Workshop, share: Share, spec: TaskSpec, data: TaskData | None, learned: Learned
) -> tuple[Share, Learned]:
    """A task that is in the Share model, trained further where the recipe says so.

    A task that came as an adapter with data is trained on them, and with ``finetune`` (the paper's
    Share-full) every task that has data is trained once more in the subspace as it is now.
    """
    recipe = shop.recipe
    if spec.learns and data is not None:
        if spec.adapter is not None:
            share, learned = _train_on(shop, share, spec, data, learned)
        if recipe.finetune:
            share, learned = _train_on(
                shop,
                share,
                spec,
                data,
                learned,
                max_steps=recipe.finetune_max_steps,
                learning_rate=recipe.finetune_learning_rate,
            )
    # What a LoRA of the recipe's rank would train at the same modules.
    shapes = [share.model.layers[m].shape for m in share.task(spec.name).coefficients]
    return share, replace(learned, own_lora=recipe.lora_rank * sum(s.sides for s in shapes))


def build_share(recipe: Recipe, adapters: Sequence[Adapter]) -> Share:
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
    dimensions = {m: layer.k for m, layer in share.model.layers.items()}
    if any(max(k) > cap for k in dimensions.values()):
        limited = {m: (min(k[0], cap), min(k[1], cap)) for m, k in dimensions.items()}
        share = Share.from_adapters(adapters, k=limited, **options)
    # The subspace may grow up to k when tasks are merged, although it is smaller now.
    names = tuple(a.name for a in adapters)
    return Share(with_cap(share.model, cap), pending=(Operation("init", names),))


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


def _recipe_adapter(
    shop: Workshop, spec: TaskSpec, data: TaskData | None
) -> tuple[Adapter, Learned]:
    """The adapter of the recipe, with a new head where it is to be trained and has none."""
    labels = data.label_names if data else ()
    learned = Learned(spec.name, "both" if spec.learns else "adapter", labels)
    adapter = read_adapter(str(spec.adapter), spec.name)
    if not spec.learns or data is None or not data.num_labels or adapter.kept:
        return adapter, learned
    model = shop.model(spec, data.num_labels)
    heads = heads_of(model)
    tensors = {
        f"{_HEAD_PREFIX}{head}.{key}": value.detach().cpu().clone()
        for head in heads
        for key, value in getattr(model, head).state_dict().items()
    }
    config = {**adapter.config, "modules_to_save": sorted(heads)}
    return replace(adapter, kept=tensors, config=config), learned


def _train_lora(shop: Workshop, path: Path, spec: TaskSpec, data: TaskData) -> Learned:
    """Train a LoRA by PEFT; it is on disk, whole, when this returns."""
    from sharespace.tuner import release

    recipe, peft = shop.recipe, require("peft", "train")
    shop.say("learning", spec, f"training its own LoRA on {len(data.train)} examples")
    training = shop.training(spec, data, learning_rate=recipe.lora_learning_rate)
    base = shop.model(spec, data.num_labels)
    with seeded(spec.seed):
        model = peft.get_peft_model(
            base, lora_config(recipe, spec, heads_of_task(base, data.num_labels))
        )
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        fitted = fit(model, data.train, training, setup_for(spec, data))
    shop.remove_checkpoints(spec)
    lora = sum(p.numel() for n, p in trained if ".lora_" in n)
    heads = sum(p.numel() for _, p in trained) - lora
    learned = Learned(spec.name, "lora", data.label_names, lora=lora, heads=heads)
    learned = replace(learned, **learned.trained(fitted))
    # The counts come first: an adapter that is there is one whose counts are there too.
    shop.folder.keep_counts(path, {**vars(learned), "labels": list(learned.labels)})
    model.peft_config["default"].base_model_name_or_path = recipe.base.text
    with new_directory(path) as aside:
        # "auto", the default, would ask the Hub whether the base model's vocabulary was resized.
        model.save_pretrained(aside, save_embedding_layers=False)
    release(model)
    shop.say("kept", spec, f"own LoRA trained, {learned.told}")
    return learned


def _reproducible(recipe: Recipe, adapter: Adapter) -> Adapter:
    """Without paths of this machine, and without the order of PEFT's sets, which changes."""
    names = {n: adapter.config.get(n) for n in ("target_modules", "modules_to_save")}
    ordered = {n: sorted(set(v)) for n, v in names.items() if isinstance(v, list)}
    config = {**adapter.config, **ordered, "base_model_name_or_path": recipe.base.text}
    return replace(adapter, config=config, provenance=LEARNED)


def _learn_in_subspace(
    shop: Workshop, share: Share, spec: TaskSpec, data: TaskData
) -> tuple[Adapter, Learned]:
    """A task learned from data in the subspace (docs/method.md, "Step 2: learn a new task")."""
    from sharespace.tuner import release

    shop.say("learning", spec, f"learning in the subspace from {len(data.train)} examples")
    model = shop.model(spec, data.num_labels)
    method = replace(
        spec.subspace,
        heads=heads_of_task(model, data.num_labels),
        seed=spec.seed,
        task_type=PEFT_TYPES[spec.settings.task_type],
    )
    training, setup = shop.training(spec, data), setup_for(spec, data)
    with seeded(spec.seed):
        adapted = adapt(
            model, share, data.train, training, task=spec.name, method=method, setup=setup
        )
    shop.remove_checkpoints(spec)
    release(adapted.model)
    learned = Learned(spec.name, "data", data.label_names, start=adapted.start)
    learned = replace(learned, **learned.trained(adapted.fit, adapted.trainable))
    if adapted.fit.choice is not None:
        shop.say("learning", spec, adapted.fit.choice.told())
    shop.say("learned", spec, f"learned, {learned.told}")
    return adapted.adapter, learned


def _train_on(
    shop: Workshop,
    share: Share,
    spec: TaskSpec,
    data: TaskData,
    learned: Learned,
    **changed: Any,
) -> tuple[Share, Learned]:
    """A known task's coefficients and head trained further, the bases frozen."""
    from sharespace.tuner import release

    shop.say("learning", spec, f"training its coefficients on {len(data.train)} examples")
    training, setup = shop.training(spec, data, **changed), setup_for(spec, data)
    if "max_steps" in changed:
        # A training of a fixed length has nothing to stop early.
        setup = replace(setup, evaluation=None, metrics=None)
    model = shop.model(spec, data.num_labels)
    with seeded(spec.seed):
        tuned = finetune(model, share, data.train, training, task=spec.name, setup=setup)
    shop.remove_checkpoints(spec)
    release(tuned.model)
    first = None if learned.steps else tuned.trainable
    learned = replace(learned, **learned.trained(tuned.fit, first))
    shop.say("learned", spec, f"coefficients trained, {learned.told}")
    return tuned.share, learned


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

    def progress(name: str) -> None:
        observe(Event("checking", name, f"{name}: checking"))

    checked = check(recipe, done=done, progress=progress)
    for kind in dict.fromkeys(s.settings.task_type for s in recipe.tasks if s.data is not None):
        load_processor(recipe, kind)
    problems = [problem for task in checked for problem in _task_problems(recipe, task)]
    if problems:
        raise RecipeError(where, tuple(problems))


def _task_problems(recipe: Recipe, checked: TaskCheck) -> Iterator[str]:
    """What of a task does not fit its base model."""
    spec = present(recipe.task(checked.name), f"task {checked.name!r} of the recipe")
    outputs = num_labels(spec, checked.labels)
    # Any number of outputs does for shapes where the data does not say it.
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
    from sharespace.tuner.modules import adapted_module

    try:
        for module, shape in adapter.shapes.items():
            # It raises where the module does not fit.
            adapted_module(model, module, (shape.out_features, shape.in_features))
    except MismatchError as error:
        yield _problem(spec, "adapter", f"{error.what} {error.why}")


def _head_problems(spec: TaskSpec, adapter: Adapter, model: Any, has_head: bool) -> Iterator[str]:
    """What it carries beside the updates must be a head of this model, of this size."""
    parameters = dict(model.named_parameters())
    heads = tuple(f"{name}." for name in heads_of(model)) if has_head else ()
    for key in adapter.kept:
        name = key.removeprefix(_HEAD_PREFIX)
        # No name of a parameter starts with a null character: without heads, none is allowed.
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
