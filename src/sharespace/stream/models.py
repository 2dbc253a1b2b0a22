"""A recipe's models and trainings: what ``sharespace.learn`` is given for a task.

The base model is loaded once for each kind of task, and gets a fresh head for every task.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sharespace.errors import RecipeError
from sharespace.extras import require
from sharespace.learn import Setup, TrainingSettings
from sharespace.learn.training import seeded
from sharespace.stream.metrics import compute_metrics_for, metric
from sharespace.stream.recipe import Recipe, TaskData, TaskSpec

AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "causal-lm": "AutoModelForCausalLM",
}

PEFT_TYPES = {
    "text-classification": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "image-classification": None,
    "causal-lm": "CAUSAL_LM",
}
"""PEFT's name of the kind of task; it has none for images."""

_SINGLE = "single_label_classification"


class BaseModels:
    """Loads a base model when it is needed first, and gives it another head for every task."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._loaded: dict[str, Any] = {}

    def model(self, spec: TaskSpec, outputs: int) -> nn.Module:
        """The base model with a new random head (of the recipe's seed) for the task.

        It is one object for all tasks of a kind: give it back as it was
        (``sharespace.tuner.release``) before the next is asked for.

        Args:
            spec: the task.
            outputs: of the head; 0: none of its own.
        """
        kind = AUTO_CLASSES[spec.settings.task_type]
        if kind not in self._loaded:
            self._loaded[kind] = _load(self.recipe, kind, outputs)
        model = self._loaded[kind]
        if outputs:
            _renew_heads(model, self.recipe, spec, outputs)
        return model  # type: ignore[no-any-return]


def _load(recipe: Recipe, kind: str, outputs: int) -> Any:
    """The base model with its weights, by the class of that name.

    Weights that the checkpoint lacks (a pooler) are drawn with the recipe's seed.
    """
    auto = getattr(require("transformers", "train"), kind)
    try:
        with seeded(recipe.seed):
            return auto.from_pretrained(
                str(recipe.base),
                revision=recipe.base_revision,
                config=_config(recipe, outputs),
                dtype=getattr(torch, recipe.dtype),
                # A checkpoint may come with another task's head; ours is made anew.
                ignore_mismatched_sizes=bool(outputs),
            )
    except (OSError, ValueError, RuntimeError) as error:
        why = f"base: the weights of {recipe.base.text!r} cannot be read"
        raise RecipeError(
            str(recipe.file or "recipe"), (why,), str(error).split("\n")[0]
        ) from error


def _renew_heads(model: Any, recipe: Recipe, spec: TaskSpec, outputs: int) -> None:
    """Replace a model's heads, in place, by new random ones of the task's seed."""
    fresh = skeleton(recipe, spec, outputs)
    weight = next(getattr(model, model.base_model_prefix).parameters())
    with seeded(spec.seed), torch.no_grad():
        for name in heads_of(fresh):
            head = getattr(fresh, name).to_empty(device="cpu")
            for module in head.modules():
                fresh._init_weights(module)
            setattr(model, name, head.to(weight.device, weight.dtype))
    model.num_labels = model.config.num_labels = outputs
    kind = spec.settings.task_type
    model.config.problem_type = "regression" if kind == "regression" else _SINGLE


def skeleton(recipe: Recipe, spec: TaskSpec, outputs: int) -> Any:
    """The model of a task without weights (on the meta device), to compare shapes with.

    Raises:
        RecipeError: the base model has no form for this kind of task.
    """
    transformers = require("transformers", "train")
    config = _config(recipe, outputs)
    try:
        with torch.device("meta"):
            return getattr(transformers, AUTO_CLASSES[spec.settings.task_type]).from_config(config)
    except (ValueError, TypeError) as error:
        kind = spec.settings.task_type
        why = f"task {spec.name!r}, task_type: the base model is not one for {kind}"
        raise RecipeError(
            str(recipe.file or "recipe"), (why,), str(error).split("\n")[0]
        ) from error


def _config(recipe: Recipe, outputs: int) -> Any:
    """The base model's config, with so many outputs of the head; 0: as it is."""
    extra = {"num_labels": outputs} if outputs else {}
    auto = require("transformers", "train").AutoConfig
    return auto.from_pretrained(str(recipe.base), revision=recipe.base_revision, **extra)


def num_labels(spec: TaskSpec, labels: tuple[str, ...]) -> int:
    """Outputs of the task's head; 0: it has none of its own."""
    return {"causal-lm": 0, "regression": 1}.get(spec.settings.task_type, len(labels))


def heads_of(model: Any) -> tuple[str, ...]:
    """Modules beside the backbone that have weights: all of what a task adds to the base model.

    RoBERTa's ``classifier``, DistilBERT's ``pre_classifier`` and ``classifier``, GPT-2's ``score``.
    """
    children = dict(model.named_children())
    weighted = [n for n, m in children.items() if any(True for _ in m.parameters())]
    return tuple(n for n in weighted if n != model.base_model_prefix)


def heads_of_task(model: Any, outputs: int) -> tuple[str, ...]:
    """Modules of the model that are trained whole with a task of that many outputs."""
    return heads_of(model) if outputs else ()


def training_for(
    spec: TaskSpec,
    data: TaskData,
    trackers: Path,
    *,
    learning_rate: float | None = None,
    max_steps: int | None = None,
    bars: bool = False,
) -> TrainingSettings:
    """How a task is trained.

    Args:
        spec: the task.
        data: of the task.
        trackers: folder that trackers write to, where the recipe names any.
        learning_rate: instead of the task's.
        max_steps: instead of the task's epochs or steps; without early stopping.
        bars: show Trainer's progress bar.
    """
    settings = spec.training
    steps_of_epoch = _steps_of_epoch(settings, len(data.train))
    arguments: dict[str, object] = {"remove_unused_columns": False, "disable_tqdm": not bars}
    if settings.report_to:
        arguments |= {"run_name": spec.name, "output_dir": str(trackers)}
    training = replace(
        settings,
        seed=spec.seed,
        learning_rate=learning_rate or settings.learning_rate,
        max_steps=max_steps or _steps(settings, steps_of_epoch),
        eval_steps=settings.eval_steps or steps_of_epoch,
        early_stopping_patience=settings.early_stopping_patience if max_steps is None else None,
        arguments=arguments,
    )
    if training.early_stopping_patience is None:
        return training
    watched = metric(_watched(spec))
    return replace(
        training,
        metric_for_best_model=watched.name,
        greater_is_better=watched.higher_is_better,
    )


def _steps(settings: TrainingSettings, epoch: int) -> int:
    if settings.max_steps > 0:
        return settings.max_steps
    return max(math.ceil(settings.num_train_epochs * epoch), 1)


def _steps_of_epoch(settings: TrainingSettings, rows: int) -> int:
    """Optimizer steps of a pass over so many rows, on all devices of this machine and run."""
    known = _known(settings)
    batches = math.ceil(rows / int(known.train_batch_size * known.world_size))
    return max(math.ceil(batches / settings.gradient_accumulation_steps), 1)


def setup_for(spec: TaskSpec, data: TaskData) -> Setup:
    """Data, collator and, for early stopping, the metric."""
    if spec.training.early_stopping_patience is None:
        return Setup(collator=data.collator)
    watched = _watched(spec)
    # Trainer's own loss needs no metric, and no memory for all logits.
    computed = None if watched == "loss" else compute_metrics_for(watched)
    return Setup(evaluation=data.eval, metrics=computed, collator=data.collator)


def _watched(spec: TaskSpec) -> str:
    """What early stopping goes by: the task's metric; a language model's loss."""
    return "loss" if spec.settings.task_type == "causal-lm" else spec.settings.score


def training_device(spec: TaskSpec) -> torch.device:
    """Where Trainer puts the model."""
    device: torch.device = _known(spec.training).device
    return device


def _known(settings: TrainingSettings) -> Any:
    """The arguments that Trainer would have, which know the devices; nothing is written."""
    make = require("transformers", "train").TrainingArguments
    # Any rate does: devices and batches do not depend on it.
    settings = replace(settings, learning_rate=settings.head_rate)
    return make(**{**settings.trainer_arguments(), "output_dir": "unused", "report_to": "none"})
