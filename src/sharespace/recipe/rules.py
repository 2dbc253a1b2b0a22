"""What the keys of a recipe must have to do with each other; no file is looked at."""

from __future__ import annotations

from collections.abc import Iterator

from sharespace.recipe.document import Problem
from sharespace.recipe.schema import Recipe, TaskSpec
from sharespace.recipe.settings import METRICS, DataSettings

MOST_LABELS = 100_000


def recipe_problems(recipe: Recipe) -> Iterator[Problem]:
    """All that is wrong between the keys."""
    if recipe.tasks and recipe.initial > len(recipe.tasks):
        have = len(recipe.tasks)
        yield Problem(None, f"initial: is {recipe.initial}, but there are {have} tasks")
    yield from _same_names(recipe)
    for spec in recipe.tasks:
        for why in _task_problems(spec):
            yield Problem(spec.line, f"task {spec.name!r}, {why}")


def _same_names(recipe: Recipe) -> Iterator[Problem]:
    first: dict[str, int | None] = {}
    for spec in recipe.tasks:
        if spec.name in first:
            why = f"a task of that name is in line {first[spec.name]} already"
            yield Problem(spec.line, f"task {spec.name!r}, name: {why}")
        first.setdefault(spec.name, spec.line)


def _task_problems(spec: TaskSpec) -> Iterator[str]:
    yield from _source_problems(spec)
    yield from _data_problems(spec.settings, spec.labels)
    training = spec.training
    if spec.subspace.p > spec.subspace.k:
        yield f"p: is {spec.subspace.p}, above k = {spec.subspace.k}"
    if training.max_steps == 0:
        yield "max_steps: is 0; -1 means as many as num_train_epochs needs"
    if training.bf16 and training.fp16:
        yield "bf16, fp16: only one of them"
    if training.eval_steps is not None and training.early_stopping_patience is None:
        yield "eval_steps: needs early_stopping_patience"


def _source_problems(spec: TaskSpec) -> Iterator[str]:
    if spec.data is None and spec.adapter is None:
        yield "data, adapter: at least one of them is needed"
    if spec.eval_only and (spec.data is None or spec.adapter is None):
        yield "eval_only: needs both data and adapter"
    for name in ("eval_data", "data_config", "data_revision", "labels"):
        if getattr(spec, name) is not None and spec.data is None:
            yield f"{name}: needs data"
    ways = ("eval_split", "eval_fraction")
    given = [n for n in ways if getattr(spec.settings, n) is not None]
    if len(given) + (spec.eval_data is not None) > 1:
        yield "eval_data, eval_split, eval_fraction: only one of them"


def _data_problems(settings: DataSettings, labels: tuple[str, ...] | None) -> Iterator[str]:
    kind = settings.task_type
    if settings.metric and settings.metric not in METRICS[kind]:
        yield f"metric: {settings.metric} is none of {kind}: {', '.join(METRICS[kind])}"
    if labels is not None and kind in ("regression", "causal-lm"):
        yield f"labels: {kind} has none"
    if labels is not None and not 2 <= len(labels) <= MOST_LABELS:
        yield f"labels: {len(labels)} of them; at least 2 are needed"
    if (settings.prompt is None) != (settings.completion is None):
        yield "prompt, completion: both or none of them"
    elif settings.prompt is not None and kind != "causal-lm":
        yield "prompt, completion: for causal-lm only"
    if settings.metric in ("rouge_l", "exact_match") and settings.prompt is None:
        yield f"metric: {settings.metric} needs prompt and completion"
    if settings.text2 is not None and kind in ("causal-lm", "image-classification"):
        yield f"text2: {kind} has no pairs"
