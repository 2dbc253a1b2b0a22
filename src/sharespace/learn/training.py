"""Training with the Trainer of transformers, or any subclass of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn
from torch.utils.data import Dataset

from sharespace.errors import OptionError
from sharespace.extras import require

Metrics = Callable[[Any], Mapping[str, float]]
"""Trainer's ``compute_metrics``: an ``EvalPrediction`` -> name -> value."""


@dataclass(frozen=True)
class Training:
    """How to train: AdamW, cosine decay to zero after a linear warm-up."""

    steps: int
    learning_rate: float
    batch_size: int = 64
    weight_decay: float = 0.01
    warmup: float = 0.06
    """Part of the steps."""
    seed: int = 0
    """Of the order of the examples and of dropout."""
    cpu: bool = False
    """Stay on the CPU even where there is an accelerator."""
    patience: int | None = None
    """Stop after so many evaluations without a better score, and keep the best weights; needs
    evaluation data, and a metric whose larger value is better."""
    evaluate_every: int = 50
    """Steps between evaluations, with ``patience``."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """More of ``TrainingArguments``, such as ``report_to``; they win over the fields above."""


@dataclass(frozen=True)
class Fit:
    """What a training run measured."""

    loss: float
    """Mean training loss over all steps."""
    seconds: float
    steps: int
    history: tuple[Mapping[str, float], ...] = ()
    """What Trainer logged, in order."""


@dataclass(frozen=True, eq=False)
class Setup:
    """Everything else that a Trainer takes; the defaults are Trainer's own."""

    evaluation: Any = None
    """Dataset to evaluate on."""
    metrics: Metrics | None = None
    collator: Any = None
    callbacks: Sequence[Any] = ()
    """``TrainerCallback`` objects."""
    trainer: type | None = None
    """A subclass of ``transformers.Trainer``, such as TRL's ``SFTTrainer``."""
    arguments: type | None = None
    """The class of its arguments, such as TRL's ``SFTConfig``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of the trainer, such as ``processing_class``."""


def fit(
    model: nn.Module, dataset: Dataset[Any] | Any, training: Training, setup: Setup | None = None
) -> Fit:
    """Train what requires a gradient, in place; nothing is printed, and nothing is kept on disk
    unless ``training.arguments`` names an ``output_dir``.

    Args:
        model: returns a loss when called with the examples' fields.
        dataset: of dictionaries of tensors, named as the arguments of the model's forward, or
            whatever ``setup.trainer`` takes.
        training: the numbers.
        setup: evaluation, metrics, callbacks, another trainer.

    Raises:
        MissingExtraError: transformers or accelerate is not installed.
        OptionError: ``patience`` without evaluation data or metric.
    """
    setup = setup or Setup()
    require("accelerate", "train")
    transformers = require("transformers", "train")
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(transformers, model, dataset, training, setup, folder)
        trainer.remove_callback(transformers.PrinterCallback)
        result = trainer.train()
    model.eval()
    history = tuple(dict(entry) for entry in trainer.state.log_history)
    return Fit(result.training_loss, result.metrics["train_runtime"], result.global_step, history)


def _trainer(
    transformers: Any,
    model: nn.Module,
    dataset: Any,
    training: Training,
    setup: Setup,
    folder: str,
) -> Any:
    arguments = {**_arguments(training, folder), **_stopping(training, setup), **training.arguments}
    callbacks = list(setup.callbacks)
    if training.patience is not None:
        callbacks.append(transformers.EarlyStoppingCallback(training.patience))
    make = cast(Any, setup.trainer or transformers.Trainer)
    make_arguments = cast(Any, setup.arguments or transformers.TrainingArguments)
    return make(
        model=model,
        args=make_arguments(**arguments),
        train_dataset=dataset,
        eval_dataset=setup.evaluation,
        compute_metrics=setup.metrics,
        data_collator=setup.collator,
        callbacks=callbacks,
        **setup.options,
    )


def _arguments(training: Training, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": training.steps,
        "learning_rate": training.learning_rate,
        "per_device_train_batch_size": training.batch_size,
        "weight_decay": training.weight_decay,
        "warmup_steps": round(training.warmup * training.steps),
        "lr_scheduler_type": "cosine",
        "seed": training.seed,
        "use_cpu": training.cpu,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _stopping(training: Training, setup: Setup) -> dict[str, Any]:
    """Arguments of early stopping; empty without ``patience``.

    Raises:
        OptionError: there is nothing to decide by.
    """
    if training.patience is None:
        return {}
    if setup.evaluation is None:
        raise OptionError(
            f"patience={training.patience}", "there is no evaluation data", "Give some, or leave it"
        )
    every = {"eval_strategy": "steps", "eval_steps": training.evaluate_every}
    saved = {"save_strategy": "steps", "save_steps": training.evaluate_every}
    best = {"load_best_model_at_end": True, "save_total_limit": 1}
    return {**every, **saved, **best}
