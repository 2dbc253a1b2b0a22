"""The base model, loaded once for each kind of task, with a fresh head for every task."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sharespace.errors import RecipeError
from sharespace.extras import require
from sharespace.learn.quiet import seeded
from sharespace.recipe import Recipe, TaskSpec

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


def num_labels(spec: TaskSpec, labels: tuple[str, ...]) -> int:
    """Outputs of the task's head; 0: it has none of its own."""
    return {"causal-lm": 0, "regression": 1}.get(spec.settings.task_type, len(labels))


def heads_of(model: Any) -> tuple[str, ...]:
    """Modules beside the backbone that have weights: all of what a task adds to the base model.

    RoBERTa's ``classifier``, DistilBERT's ``pre_classifier`` and ``classifier``, GPT-2's ``score``.
    """
    children = dict(model.named_children())
    own = [n for n, m in children.items() if any(True for _ in m.parameters())]
    return tuple(n for n in own if n != model.base_model_prefix)


def heads_of_task(model: Any, outputs: int) -> tuple[str, ...]:
    """Modules of the model that are trained whole with a task of that many outputs."""
    return heads_of(model) if outputs else ()


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


class BaseModels:
    """Loads a base model when it is needed first, and gives it another head for every task."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._loaded: dict[str, Any] = {}

    def model(self, spec: TaskSpec, outputs: int) -> nn.Module:
        """The base model with a new random head (of the recipe's seed) for the task.

        It is one object for all tasks of a kind: give it back as it was (``nn.release``) before
        the next is asked for.

        Args:
            outputs: of the head; 0: none of its own.
        """
        kind = AUTO_CLASSES[spec.settings.task_type]
        if kind not in self._loaded:
            self._loaded[kind] = _load(self.recipe, kind, outputs)
        model = self._loaded[kind]
        if outputs:
            _renew_heads(model, self.recipe, spec, outputs)
        return model  # type: ignore[no-any-return]


def _config(recipe: Recipe, outputs: int) -> Any:
    extra = {"num_labels": outputs} if outputs else {}
    auto = require("transformers", "train").AutoConfig
    return auto.from_pretrained(str(recipe.base), revision=recipe.base_revision, **extra)


def _load(recipe: Recipe, kind: str, outputs: int) -> Any:
    """Weights that the checkpoint lacks (a pooler) are drawn with the recipe's seed."""
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


_SINGLE = "single_label_classification"
