"""A recipe's tasks and numbers as the baselines take them: one recipe for every method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sharespace.compare import ComparisonSettings, TaskJob
from sharespace.errors import RecipeError
from sharespace.learn import TrainingSettings
from sharespace.stream.models import BaseModels, heads_of, setup_for, skeleton, training_for
from sharespace.stream.recipe import Recipe, TaskData, TaskSpec, load_processor, load_task_data
from sharespace.stream.scoring import score

_DEFAULT_ONLY = ("method", "variance", "store_dtype", "lora_dropout", "router")
"""Keys of the recipe that the baselines have no counterpart of."""
_OF_EACH_TASK = ("learning_rate", "num_train_epochs", "max_steps")
"""Training keys in which tasks may differ."""


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with another seed, that of its tasks included."""
    tasks = tuple(replace(spec, seed=seed) for spec in recipe.tasks)
    return replace(recipe, seed=seed, tasks=tasks)


def make(recipe: Recipe) -> tuple[list[TaskJob], ComparisonSettings]:
    """The jobs of a comparison, in the order of the recipe, and the numbers of all methods.

    Learning rates of tasks differ by one factor for LoRA, head and coefficients. Trackers are for
    ``sharespace run``.

    Raises:
        RecipeError: data is missing, or the recipe says what the baselines cannot do.
    """
    problems = tuple(_problems(recipe))
    if problems:
        where = str(recipe.file or "recipe")
        raise RecipeError(where, problems, "`sharespace run` can do it; the comparison cannot")
    tokenizer = load_processor(recipe, recipe.tasks[0].settings.task_type)
    data = [load_task_data(spec, tokenizer) for spec in recipe.tasks]
    trainings = [_training(*pair) for pair in zip(recipe.tasks, data, strict=True)]
    jobs = [
        _job(recipe, spec, its_data, training, tokenizer)
        for spec, its_data, training in zip(recipe.tasks, data, trainings, strict=True)
    ]
    return jobs, _settings(recipe, trainings[0])


def _job(
    recipe: Recipe, spec: TaskSpec, data: TaskData, training: TrainingSettings, tokenizer: Any
) -> TaskJob:
    outputs = data.num_labels
    return TaskJob(
        name=spec.name,
        data=data.train,
        # One loader a model: they must not be the same object.
        model=lambda: BaseModels(recipe).model(spec, outputs),
        score=lambda model: score(model, spec, data, tokenizer),
        heads=heads_of(skeleton(recipe, spec, outputs)),
        steps=training.max_steps,
        rate=spec.training.rate / recipe.tasks[0].training.rate,
        setup=setup_for(spec, data),
    )


def _training(spec: TaskSpec, data: TaskData) -> TrainingSettings:
    """The task's training, without trackers."""
    spec = replace(spec, training=replace(spec.training, report_to=()))
    return training_for(spec, data, Path())


def _settings(recipe: Recipe, first: TrainingSettings) -> ComparisonSettings:
    """Of the first task; the jobs have the others' steps and rates."""
    subspace = recipe.tasks[0].subspace
    targets = recipe.target_modules or ()
    rate, steps = recipe.finetune_learning_rate, recipe.finetune_max_steps
    return ComparisonSettings(
        head=first,
        lora=replace(first, learning_rate=recipe.lora_learning_rate),
        coefficients=first,
        finetune=replace(first, learning_rate=rate, max_steps=steps),
        targets=targets[0] if targets == ("all-linear",) else targets,
        rank=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        k=subspace.k,
        method=subspace,
        initial=recipe.initial,
        seed=recipe.seed,
    )


def _problems(recipe: Recipe) -> Iterator[str]:
    """What the baselines would have to ignore."""
    defaults = {f.name: f.default for f in fields(Recipe)}
    for name in _DEFAULT_ONLY:
        if getattr(recipe, name) != defaults[name]:
            yield f"{name}: only {defaults[name]} is compared"
    if any(spec.subspace.head_steps for spec in recipe.tasks):
        yield "head_steps: the baselines have none"
    if recipe.target_modules is None:
        yield "target_modules: name them, so that all methods adapt the same"
    for spec in recipe.tasks:
        yield from (f"task {spec.name!r}, {why}" for why in _task_problems(recipe, spec))


def _task_problems(recipe: Recipe, spec: TaskSpec) -> Iterator[str]:
    first = recipe.tasks[0]
    if spec.adapter is not None:
        yield "adapter: every method learns from data"
    if spec.settings.task_type not in ("text-classification", "regression"):
        yield f"task_type: no text-classification or regression, but {spec.settings.task_type}"
    if spec.training.early_stopping_patience is not None:
        yield "early_stopping_patience: every method trains to the end"
    if spec.subspace != first.subspace:
        yield "k, p, phi, form, directions, start: other than those of the first task"
    for name in (f.name for f in fields(spec.training) if f.name not in _OF_EACH_TASK):
        if getattr(spec.training, name) != getattr(first.training, name):
            yield f"{name}: other than that of the first task"
