"""A recipe's tasks as jobs of a comparison: the same data, models, trainings and scores as ``run``.

A comparison has one setting for all tasks, so that what a recipe says of some tasks only is
refused, by the name of the key, before anything is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from sharespace.compare.job import ComparisonSettings, TaskJob
from sharespace.compare.lora import in_heads
from sharespace.errors import RecipeError
from sharespace.learn import TaskMethod, TrainingSettings
from sharespace.learn.automatic import BASE_RATES
from sharespace.stream.folder import RunFolder
from sharespace.stream.learning import Workshop, build_share
from sharespace.stream.models import BaseModels, heads_of_task, num_labels, setup_for
from sharespace.stream.recipe import Recipe, TaskData, TaskSpec
from sharespace.stream.records import ignore
from sharespace.stream.scoring import score

HELD_OUT = 0.2
"""Part of every task's training examples that learning rates are chosen on."""

OSF_FACTOR = 0.1
"""OSF trains whole weights: its base rate is this part of the LoRAs'."""

_OF_EACH_TASK = ("num_train_epochs", "max_steps", "eval_steps", "seed")
"""Fields of ``TrainingSettings`` that tasks may differ in."""


@dataclass(frozen=True, eq=False)
class RecipeJobs:
    """A recipe's tasks at one seed, ready for ``Workbench``."""

    jobs: Sequence[TaskJob]
    """Trained on all training examples, scored on the evaluation examples."""
    choosing: Sequence[TaskJob]
    """The same, trained on a part of the training examples and scored on the rest of them."""
    settings: ComparisonSettings
    """At the recipe's own learning rates."""


def recipe_problems(recipe: Recipe) -> Iterator[str]:
    """What of a recipe no comparison can be made of, a line each; no file is read."""
    first = recipe.tasks[0]
    for spec in recipe.tasks:
        if spec.adapter is not None:
            yield _line(
                spec,
                "adapter",
                "the other methods learn from data, and an adapter would be ahead of them; leave "
                "it out" + ("" if spec.data else ", and give data"),
            )
        if spec.training.early_stopping_patience is not None:
            yield _line(
                spec,
                "early_stopping_patience",
                "would stop by the examples that are scored, and methods that train tasks together "
                "have nothing to stop by; give num_train_epochs or max_steps",
            )
        if spec.training.report_to:
            yield _line(spec, "report_to", "a comparison writes to no tracker; leave it out")
        for key in _differing(first, spec):
            yield _line(
                spec,
                key,
                f"is not that of {first.name!r}, and a comparison has one for all tasks; give it "
                "at the top",
            )


def recipe_notices(recipe: Recipe) -> Iterator[str]:
    """What of a recipe plays no part in a comparison, a line each."""
    yield f"share: {recipe.share.name} is not written; a comparison keeps no Share model"
    if recipe.router:
        yield "router: none is made; every method is told the task"


def recipe_jobs(recipe: Recipe, seed: int, *, bars: bool = False) -> RecipeJobs:
    """Read a recipe's data and base model as jobs of a comparison.

    Args:
        recipe: without ``recipe_problems``.
        seed: takes the place of the recipe's.
        bars: show Trainer's progress bars.

    Returns:
        Jobs in the order of the recipe, which share one base model in memory.

    Raises:
        RecipeError: data or base model cannot be used.
        MissingExtraError: the extra ``train`` is not installed.
    """
    tasks = tuple(replace(spec, seed=seed) for spec in recipe.tasks)
    recipe = replace(recipe, seed=seed, tasks=tasks)
    shop = Workshop(recipe, RunFolder(recipe), BaseModels(recipe), ignore, bars)
    jobs, choosing = [], []
    for spec in recipe.tasks:
        data = shop.data(spec)
        job = _job(shop, spec, data)
        jobs.append(job)
        choosing.append(_choosing(shop, job, spec, data))
    return RecipeJobs(jobs, choosing, _settings(shop, recipe, shop.data(recipe.tasks[0])))


def _job(shop: Workshop, spec: TaskSpec, data: TaskData) -> TaskJob:
    outputs = num_labels(spec, data.label_names)
    return TaskJob(
        name=spec.name,
        data=data.train,
        model=partial(_own_copy, shop, spec, outputs),
        score=partial(_score, shop, spec, data),
        heads=heads_of_task(shop.model(spec, outputs), outputs),
        steps=shop.training(spec, data).max_steps,
        setup=setup_for(spec, data),
        labels=data.label_names,
    )


def _own_copy(shop: Workshop, spec: TaskSpec, outputs: int) -> nn.Module:
    """The base model with a new head, as modules of its own over the same parameters."""
    model: nn.Module = shop.model(spec, outputs)
    heads = heads_of_task(model, outputs)
    # What is in the memo is not copied: there is one backbone in memory, whatever the tasks.
    shared = {id(p): p for n, p in model.named_parameters() if not in_heads(n, heads)}
    return copy.deepcopy(model, dict(shared))


def _score(shop: Workshop, spec: TaskSpec, data: TaskData, model: nn.Module) -> float:
    return score(model, spec, data, shop.processor(spec))


def _choosing(shop: Workshop, job: TaskJob, spec: TaskSpec, data: TaskData) -> TaskJob:
    """The job with a part of its training examples in the place of those that are scored."""
    count = max(round(HELD_OUT * len(data.train)), 1)
    if count == len(data.train):
        why = "has one row, and some are held out to choose learning rates by; give more"
        raise RecipeError(str(shop.recipe.file or "recipe"), (_line(spec, "train_split", why),))
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(spec.seed))
    aside, rest = (data.train.select(rows.tolist()) for rows in (order[:count], order[count:]))
    if spec.settings.score in ("rouge_l", "exact_match"):
        # What is written is compared with rows as they were read, which training has not.
        spec = replace(spec, settings=replace(spec.settings, metric="loss"))
    held = replace(data, train=rest, eval=aside)
    return replace(job, data=rest, score=partial(_score, shop, spec, held))


def _settings(shop: Workshop, recipe: Recipe, data: TaskData) -> ComparisonSettings:
    """The recipe's numbers in the words of a comparison."""
    first = recipe.tasks[0]
    training = _at_a_number(shop.training(first, data), first.subspace)
    lora = replace(training, learning_rate=recipe.lora_learning_rate)
    osf = replace(training, learning_rate=OSF_FACTOR * recipe.lora_learning_rate)
    finetune = replace(
        training,
        learning_rate=recipe.finetune_learning_rate,
        max_steps=recipe.finetune_max_steps,
    )
    method = {f.name: getattr(first.subspace, f.name) for f in fields(TaskMethod)}
    return ComparisonSettings(
        head=replace(training, learning_rate=training.head_rate),
        lora=lora,
        coefficients=training,
        finetune=finetune,
        osf=osf,
        method=TaskMethod(**method),
        targets=_targets(shop, recipe),
        rank=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        k=first.subspace.k,
        initial=recipe.initial,
        build=partial(build_share, recipe),
        seed=recipe.seed,
    )


def _at_a_number(training: TrainingSettings, method: TaskMethod) -> TrainingSettings:
    """The training at a rate that factors can be tried of: ``"auto"`` begins its search there."""
    if training.learning_rate != "auto":
        return training
    rate = BASE_RATES[method.form]
    return replace(training, learning_rate=rate, head_learning_rate=training.head_rate)


def _targets(shop: Workshop, recipe: Recipe) -> Sequence[str] | str:
    """The modules that all methods adapt: the recipe's, or PEFT's choice for the base model."""
    if recipe.target_modules == ("all-linear",):
        return "all-linear"
    if recipe.target_modules is not None:
        return recipe.target_modules
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    spec = recipe.tasks[0]
    model: Any = shop.model(spec, 2)
    kind = model.config.model_type
    if kind not in KNOWN:
        why = f"target_modules: PEFT has no choice for a {kind}; name the modules to adapt"
        raise RecipeError(str(recipe.file or "recipe"), (why,))
    targets: Sequence[str] = KNOWN[kind]
    return targets


def _differing(first: TaskSpec, spec: TaskSpec) -> Iterator[str]:
    """Keys of subspace and training in which two tasks differ that must not."""
    pairs: tuple[tuple[object, object], ...] = (
        (first.subspace, spec.subspace),
        (first.training, spec.training),
    )
    for one, other in pairs:
        names: Mapping[str, object] = vars(one)
        for name, value in names.items():
            if name not in _OF_EACH_TASK and getattr(other, name) != value:
                yield name


def _line(spec: TaskSpec, key: str, why: str) -> str:
    line = f"line {spec.line}: " if spec.line else ""
    return f"{line}task {spec.name!r}, {key}: {why}"
