"""Training with the Trainer of transformers: a recipe in, the trained model out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from sharespace.extras import require


@dataclass(frozen=True)
class Recipe:
    """How to train; AdamW, cosine decay to zero after a linear warm-up."""

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


@dataclass(frozen=True)
class Fit:
    """What a training run measured."""

    loss: float
    """Mean training loss over all steps."""
    seconds: float
    steps: int


def fit(
    model: nn.Module,
    dataset: Dataset[Any],
    recipe: Recipe,
    *,
    callbacks: Sequence[Any] = (),
) -> Fit:
    """Train what requires a gradient, in place; nothing is written and nothing printed.

    Args:
        model: returns a loss when called with the examples' fields.
        dataset: of dictionaries of tensors, named as the arguments of the model's forward.
        recipe: the settings.
        callbacks: ``TrainerCallback`` objects.

    Raises:
        MissingExtraError: transformers or accelerate is not installed.
    """
    require("accelerate", "train")
    transformers = require("transformers", "train")
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(**_arguments(recipe, folder)),
            train_dataset=dataset,
            callbacks=list(callbacks),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        result = trainer.train()
    model.eval()
    return Fit(result.training_loss, result.metrics["train_runtime"], result.global_step)


def _arguments(recipe: Recipe, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": recipe.steps,
        "learning_rate": recipe.learning_rate,
        "per_device_train_batch_size": recipe.batch_size,
        "weight_decay": recipe.weight_decay,
        "warmup_steps": round(recipe.warmup * recipe.steps),
        "lr_scheduler_type": "cosine",
        "seed": recipe.seed,
        "use_cpu": recipe.cpu,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
