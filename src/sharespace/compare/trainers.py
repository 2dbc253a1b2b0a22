"""PEFT's LoRA as all methods use it: put in, counted, read out as an adapter, tied to others.

Training on several tasks at once: a model that routes batches, and batches of one task each.

A batch has one task's examples, so heads, fields and labels of any kind may stand beside each
other. The batches are drawn beforehand and are the Trainer's examples (batch size 1), so that no
part of the Trainer is changed.

A Trainer whose loss has one more term.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sharespace.compare.bench import Workbench, in_heads
from sharespace.compare.job import Settings, TaskJob
from sharespace.errors import UnsupportedAdapterError
from sharespace.extras import require
from sharespace.learn import Fit, Setup, TrainingSettings, fit
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate, ModuleShape

DEFAULT = "default"
"""PEFT's name for the adapter that is trained."""

_PREFIX = "base_model.model."

_TASK = "task"

_ORDER = ("group_by_length", "train_sampling_strategy", "length_column_name")
"""Of ``TrainingArguments``: how examples are put into batches, which is done here."""


def add_lora(model: nn.Module, settings: Settings, heads: Sequence[str]) -> Any:
    """The model as a ``PeftModel`` with a new LoRA and copies of the heads, both trainable."""
    peft = require("peft", "train")
    targets = settings.targets
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=_pattern(heads),
        modules_to_save=list(heads) or None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return peft.get_peft_model(model, config)


def _pattern(heads: Sequence[str]) -> str | None:
    """Of everything inside the heads, for PEFT's ``exclude_modules``."""
    names = "|".join(re.escape(head) for head in heads)
    return rf"({names})(\..*)?" if heads else None


def train_heads(wrapped: Any, heads: Sequence[str], on: bool = True) -> None:
    """Let the heads be trained, or not."""
    for head in heads:
        trained_head(wrapped, head).requires_grad_(on)


def trained_head(wrapped: Any, head: str) -> nn.Module:
    """The copy of a head that is trained."""
    found: nn.Module = wrapped.base_model.model.get_submodule(head).modules_to_save[DEFAULT]
    return found


def count(model: nn.Module, heads: Sequence[str]) -> int:
    """Numbers that require a gradient, heads excluded."""
    return sum(
        p.numel() for n, p in model.named_parameters() if p.requires_grad and not in_heads(n, heads)
    )


def lora_layers(wrapped: Any, adapter: str = DEFAULT) -> dict[str, Any]:
    """Adapted module, by its name in the base model -> PEFT's layer.

    Raises:
        UnsupportedAdapterError: an embedding is adapted.
    """
    layer_class = require("peft.tuners.lora", "train").LoraLayer
    found = {}
    for name, module in wrapped.base_model.model.named_modules():
        if isinstance(module, layer_class):
            if adapter not in module.lora_A:
                why = "is an embedding, whose LoRA is looked up and not multiplied"
                raise UnsupportedAdapterError(f"module {name!r}", why, "Leave it out of targets")
            found[name] = module
    return found


def updates_of(wrapped: Any, adapter: str = DEFAULT) -> dict[str, LayerUpdate]:
    """Module -> update, on the CPU: up n x r, down r x d (convolutions flattened)."""
    return {
        name: LayerUpdate(
            _matrix(layer.lora_B[adapter].weight),
            _matrix(layer.lora_A[adapter].weight),
            float(layer.scaling[adapter]),
        )
        for name, layer in lora_layers(wrapped, adapter).items()
    }


def _matrix(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1).cpu().clone()


def shapes_of(wrapped: Any) -> dict[str, ModuleShape]:
    """Adapted module -> shape."""
    found = {}
    for name, layer in lora_layers(wrapped).items():
        n, d = layer.lora_B[DEFAULT].weight.shape[0], layer.lora_A[DEFAULT].weight[0].numel()
        kernel = tuple(getattr(layer.get_base_layer(), "kernel_size", ()))
        found[name] = ModuleShape(n, d, "conv", kernel) if kernel else ModuleShape(n, d)
    return found


def target_shapes(bench: Workbench) -> dict[str, ModuleShape]:
    """Modules that the settings' targets mean -> shape."""
    name = bench.tasks[0]
    wrapped = add_lora(bench.fresh(name), bench.settings, bench.job(name).heads)
    try:
        return shapes_of(wrapped)
    finally:
        require("sharespace.tuner", "train").release(wrapped)


def read_adapter(wrapped: Any, job: TaskJob, settings: Settings) -> Adapter:
    """The trained LoRA and heads as an adapter of the task's name."""
    base = wrapped.base_model.model
    shapes = shapes_of(wrapped)
    return Adapter.from_updates(
        job.name,
        updates_of(wrapped),
        base=BaseModel(getattr(base, "name_or_path", None) or None),
        shapes=shapes,
        kept=head_tensors(wrapped, job.heads),
        config={
            "peft_type": "LORA",
            "task_type": None,
            "bias": "none",
            "r": settings.rank,
            "lora_alpha": settings.alpha,
            "target_modules": sorted(shapes),
            "modules_to_save": sorted(job.heads) or None,
        },
    )


def head_tensors(wrapped: Any, heads: Sequence[str]) -> dict[str, Tensor]:
    """The heads' tensors under PEFT's keys, on the CPU."""
    return {
        f"{_PREFIX}{head}.{key}": value.detach().cpu().clone().contiguous()
        for head in heads
        for key, value in trained_head(wrapped, head).state_dict().items()
    }


def tie(models: Sequence[Any]) -> None:
    """Let all models use the first one's LoRA factors, the same parameters."""
    first = lora_layers(models[0])
    for model in models[1:]:
        for name, layer in lora_layers(model).items():
            layer.lora_A[DEFAULT] = first[name].lora_A[DEFAULT]
            layer.lora_B[DEFAULT] = first[name].lora_B[DEFAULT]


@dataclass(frozen=True, eq=False)
class MixedPart:
    """One task's part of a mixed training."""

    job: TaskJob
    steps: int
    """Batches that are drawn."""
    indices: Sequence[int] | None = None
    """Of the examples that may be drawn; None: all."""


class Routed(nn.Module):
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
    chosen = replace(
        training,
        max_steps=len(batches),
        per_device_train_batch_size=1,
        early_stopping_patience=None,
        arguments=arguments,
    )
    routed = Routed([models[part.job.name] for part in parts])
    return fit(routed, batches, chosen, Setup(collator=_collator(models, parts), trainer=trainer))


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
            found = super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
            if not model.training:
                return found
            loss, outputs = found if return_outputs else (found, None)
            term = penalty().to(loss.device)
            if self.model_accepts_loss_kwargs and kwargs.get("num_items_in_batch") is not None:
                # Such a loss is a part of the accumulated batch's and is not divided again.
                term = term / self.args.gradient_accumulation_steps
            return (loss + term, outputs) if return_outputs else loss + term

    return Penalised
