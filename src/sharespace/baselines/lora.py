"""PEFT's LoRA as all methods use it: put in, counted, read out as an adapter, tied to others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sharespace.baselines.bench import Workbench, in_heads
from sharespace.baselines.job import Settings, TaskJob
from sharespace.errors import UnsupportedAdapterError
from sharespace.extras import require
from sharespace.shapes import ModuleShape
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate

DEFAULT = "default"
"""PEFT's name for the adapter that is trained."""
_PREFIX = "base_model.model."


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
        require("sharespace.nn", "train").release(wrapped)


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
