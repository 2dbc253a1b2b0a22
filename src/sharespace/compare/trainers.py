"""TrainingSettings on several tasks at once, and a loss with one more term.

A batch has one task's examples, so heads, fields and labels of any kind may stand beside each
other. The batches are drawn beforehand and are the Trainer's examples (batch size 1), so that no
part of the Trainer is changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sharespace.compare.job import TaskJob
from sharespace.extras import require
from sharespace.learn import Fit, Setup, TrainingSettings, fit

_TASK = "task"
"""The field of a batch that says which model it is for."""

_ORDER = ("group_by_length", "train_sampling_strategy", "length_column_name")
"""Of ``TrainingArguments``: how examples are put into batches, which is done here."""


@dataclass(frozen=True, eq=False)
class MixedPart:
    """One task's part of a training on several tasks."""

    job: TaskJob
    steps: int
    """Batches that are drawn."""
    indices: Sequence[int] | None = None
    """Of the examples that may be drawn; None: all."""


class RoutedModels(nn.Module):
    """Several models behind one forward; ``task`` says which.

    Args:
        models: in the order of the numbers that batches have.
    """

    accepts_loss_kwargs = False
    """Read by the Trainer: ``num_items_in_batch`` is not to be passed on."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, task: int, **inputs: Any) -> Any:
        """The output of one task's model."""
        return self.models[task](**inputs)


class TaskBatches(Dataset[tuple[int, list[Any]]]):
    """Batches of one task each: (number of the part, examples).

    Every part goes through its examples in a new random order as often as its steps need.

    Args:
        parts: the tasks.
        batch_size: examples a batch; the last of a pass may be smaller.
        seed: of the orders.
    """

    def __init__(self, parts: Sequence[MixedPart], batch_size: int, seed: int) -> None:
        self.parts = parts
        generator = torch.Generator().manual_seed(seed)
        self.batches = [
            (number, batch)
            for number, part in enumerate(parts)
            for batch in _drawn(part, batch_size, generator)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[int, list[Any]]:
        number, batch = self.batches[index]
        return number, [self.parts[number].job.data[i] for i in batch]


def _drawn(part: MixedPart, size: int, generator: torch.Generator) -> list[list[int]]:
    """As many batches of numbers of examples as the part has steps."""
    known = list(range(len(part.job.data))) if part.indices is None else list(part.indices)
    batches: list[list[int]] = []
    while len(batches) < part.steps:
        order = [known[i] for i in torch.randperm(len(known), generator=generator).tolist()]
        batches += [order[i : i + size] for i in range(0, len(order), size)]
    return batches[: part.steps]


def collate(job: TaskJob, model: nn.Module, examples: Sequence[Any]) -> dict[str, Any]:
    """One task's batch, as the Trainer would make it: unused fields left out, then collated."""
    make = job.setup.collator or require("transformers", "train").default_data_collator
    peft_model = require("peft", "train").PeftModel
    base: Any = model.get_base_model() if isinstance(model, peft_model) else model
    known = inspect.signature(base.forward).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        return dict(make(list(examples)))
    names = {*known, "label", "label_ids"}
    return dict(make([_only(example, names) for example in examples]))


def _only(example: Any, names: set[str]) -> Any:
    """The fields of those names, where the example has named fields."""
    if not isinstance(example, Mapping):
        return example
    return {key: value for key, value in example.items() if key in names}


def fit_together(
    models: Mapping[str, nn.Module],
    parts: Sequence[MixedPart],
    training: TrainingSettings,
    trainer: type | None = None,
) -> Fit:
    """Train what the models share, and their heads, on batches of all parts in random order.

    The steps are the sum of the parts' steps. Early stopping and the jobs' callbacks are left out:
    there is no evaluation data of all tasks.

    Args:
        models: task -> model.
        parts: the tasks.
        training: learning rate, batch size and the like.
        trainer: a subclass of the Trainer.
    """
    batches = TaskBatches(parts, training.per_device_train_batch_size, training.seed)
    arguments = {k: v for k, v in training.arguments.items() if k not in _ORDER}
    one_by_one = replace(
        training,
        max_steps=len(batches),
        per_device_train_batch_size=1,
        early_stopping_patience=None,
        arguments=arguments,
    )
    routed = RoutedModels([models[part.job.name] for part in parts])
    return fit(
        routed, batches, one_by_one, Setup(collator=_collator(models, parts), trainer=trainer)
    )


def _collator(
    models: Mapping[str, nn.Module], parts: Sequence[MixedPart]
) -> Callable[[Sequence[Any]], dict[str, Any]]:
    def join(drawn: Sequence[tuple[int, list[Any]]]) -> dict[str, Any]:
        ((number, examples),) = drawn
        job = parts[number].job
        # Last: accelerate takes a batch's size from its first field.
        return {**collate(job, models[job.name], examples), _TASK: number}

    return join


def penalised(base: type | None, penalty: Callable[[], Tensor]) -> type:
    """A subclass of a Trainer that adds a penalty to the loss of every training step.

    Args:
        base: the Trainer; None: that of transformers.
        penalty: a scalar with a gradient, asked for at every step.
    """
    parent: Any = base or require("transformers", "train").Trainer

    class Penalised(parent):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
        ) -> Any:
            """The parent's loss; in training the penalty is added."""
            result = super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
            if not model.training:
                return result
            loss, outputs = result if return_outputs else (result, None)
            term = penalty().to(loss.device)
            if self.model_accepts_loss_kwargs and kwargs.get("num_items_in_batch") is not None:
                # Such a loss is a part of the accumulated batch's and is not divided again.
                term = term / self.args.gradient_accumulation_steps
            return (loss + term, outputs) if return_outputs else loss + term

    return Penalised
