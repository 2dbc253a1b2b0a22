"""Would every task of a recipe fit its base model? Asked before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sharespace.errors import MismatchError, RecipeError, SharespaceError
from sharespace.extras import require
from sharespace.formats import read_adapter
from sharespace.recipe import Recipe, TaskCheck, TaskSpec, check, load_processor
from sharespace.stream.events import Event, Observer
from sharespace.stream.lora import lora_config
from sharespace.stream.models import heads_of, num_labels, skeleton
from sharespace.stream.present import present
from sharespace.subspace.adapter import Adapter

_HEAD_PREFIX = "base_model.model."


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
    fits = require("sharespace.nn.modules", "train").adapted_module
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
