"""A recipe's training keys, as ``sharespace.learn`` takes them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from sharespace.evaluate import compute_metrics_for, metric
from sharespace.extras import require
from sharespace.learn import Setup, Training
from sharespace.recipe import TaskData, TaskSpec, TrainingSettings


def training_for(
    spec: TaskSpec,
    data: TaskData,
    trackers: Path,
    *,
    learning_rate: float | None = None,
    max_steps: int | None = None,
    bars: bool = False,
) -> Training:
    """How a task is trained.

    Args:
        trackers: folder that trackers write to, where the recipe names any.
        learning_rate: instead of the task's.
        max_steps: instead of the task's epochs or steps; without early stopping.
        bars: show Trainer's progress bar.
    """
    s = spec.training
    arguments = _arguments(s)
    arguments |= {"remove_unused_columns": False, "seed": spec.seed, "disable_tqdm": not bars}
    if learning_rate is not None:
        arguments["learning_rate"] = learning_rate
    if s.report_to:
        arguments |= {"logging_strategy": "steps", "run_name": spec.name}
        arguments["output_dir"] = str(trackers)
    patience = s.early_stopping_patience if max_steps is None else None
    if patience is not None:
        found = metric(_watched(spec))
        arguments["metric_for_best_model"] = f"eval_{found.name}"
        arguments["greater_is_better"] = found.higher_is_better
    every = _steps_of_epoch(s, len(data.train))
    return Training(
        steps=max_steps or _steps(s, every),
        learning_rate=arguments["learning_rate"],
        head_learning_rate=s.head_learning_rate,
        batch_size=s.per_device_train_batch_size,
        seed=spec.seed,
        cpu=s.use_cpu,
        patience=patience,
        threshold=s.early_stopping_threshold,
        evaluate_every=s.eval_steps or every,
        arguments=arguments,
    )


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


def _arguments(settings: TrainingSettings) -> dict[str, Any]:
    """Of ``TrainingArguments``, but for the length: a probe of learn may be shorter."""
    found = settings.arguments()
    return {k: v for k, v in found.items() if k not in ("max_steps", "num_train_epochs")}


def _steps(settings: TrainingSettings, epoch: int) -> int:
    if settings.max_steps > 0:
        return settings.max_steps
    return max(math.ceil(settings.num_train_epochs * epoch), 1)


def _steps_of_epoch(settings: TrainingSettings, rows: int) -> int:
    """On all devices of this machine and run."""
    known = _known(settings)
    batches = math.ceil(rows / int(known.train_batch_size * known.world_size))
    return max(math.ceil(batches / settings.gradient_accumulation_steps), 1)


def device(spec: TaskSpec) -> torch.device:
    """Where Trainer puts the model."""
    found: torch.device = _known(spec.training).device
    return found


def _known(settings: TrainingSettings) -> Any:
    make = require("transformers", "train").TrainingArguments
    return make(**{**settings.arguments(), "output_dir": "unused", "report_to": "none"})
