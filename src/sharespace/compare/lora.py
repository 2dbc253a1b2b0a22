"""PEFT's LoRA as all methods use it: put in, counted, read out as an adapter, tied to others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sharespace.compare.job import ComparisonSettings, TaskJob
from sharespace.errors import UnsupportedAdapterError
from sharespace.extras import require
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate, ModuleShape
from sharespace.subspace.layer import tensor_bytes

DEFAULT = "default"
"""PEFT's name for the adapter that is trained."""

PREFIX = "base_model.model."
"""Before the names of the base model's modules in a ``PeftModel`` and in PEFT's files."""


def add_lora(model: nn.Module, settings: ComparisonSettings, heads: Sequence[str]) -> Any:
    """The model as a ``PeftModel`` with a new LoRA and copies of the heads, both trainable."""
    peft = require("peft", "train")
    targets = settings.targets
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=_pattern(heads),
        modules_to_save=list(heads) or None,
    )
    # PEFT draws A at random; the start depends on the seed alone, whatever ran before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return peft.get_peft_model(model, config)


def _pattern(heads: Sequence[str]) -> str | None:
    """A pattern of everything inside the heads, for PEFT's ``exclude_modules``."""
    names = "|".join(re.escape(head) for head in heads)
    return rf"({names})(\..*)?" if heads else None


def train_heads(wrapped: Any, heads: Sequence[str], on: bool = True) -> None:
    """Let the heads be trained, or not."""
    for head in heads:
        trained_head(wrapped, head).requires_grad_(on)


def trained_head(wrapped: Any, head: str) -> nn.Module:
    """The copy of a head that is trained."""
    copy: nn.Module = wrapped.base_model.model.get_submodule(head).modules_to_save[DEFAULT]
    return copy


def count_trained(model: nn.Module, heads: Sequence[str]) -> int:
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
    layers = {}
    for name, module in wrapped.base_model.model.named_modules():
        if isinstance(module, layer_class):
            if adapter not in module.lora_A:
                why = "is an embedding, whose LoRA is looked up and not multiplied"
                raise UnsupportedAdapterError(f"module {name!r}", why, "Leave it out of targets")
            layers[name] = module
    return layers


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


@torch.no_grad()
def fill_lora(wrapped: Any, adapter: Adapter, name: str = DEFAULT) -> None:
    """Copy an adapter's factors into the LoRA of that name; ranks and scalings are the same."""
    for module, layer in lora_layers(wrapped, name).items():
        update = adapter.layer(module)
        up, down = layer.lora_B[name].weight, layer.lora_A[name].weight
        up.copy_(update.up.reshape(up.shape))
        down.copy_(update.down.reshape(down.shape))


def _matrix(weight: Tensor) -> Tensor:
    """A factor's weight as a matrix of its own, on the CPU; kernels are flattened."""
    return weight.detach().flatten(1).cpu().clone()


def shapes_of(wrapped: Any) -> dict[str, ModuleShape]:
    """Adapted module -> shape."""
    shapes = {}
    for name, layer in lora_layers(wrapped).items():
        n, d = layer.lora_B[DEFAULT].weight.shape[0], layer.lora_A[DEFAULT].weight[0].numel()
        kernel = tuple(getattr(layer.get_base_layer(), "kernel_size", ()))
        shapes[name] = ModuleShape(n, d, "conv", kernel) if kernel else ModuleShape(n, d)
    return shapes


def read_adapter(wrapped: Any, job: TaskJob, settings: ComparisonSettings) -> Adapter:
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
        f"{PREFIX}{head}.{key}": value.detach().cpu().clone().contiguous()
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


def lora_bytes(wrapped: Any) -> int:
    """Bytes of one LoRA's factors."""
    return sum(
        tensor_bytes(layer.lora_A[DEFAULT].weight, layer.lora_B[DEFAULT].weight)
        for layer in lora_layers(wrapped).values()
    )


def in_heads(name: str, heads: Sequence[str]) -> bool:
    """True for the name of a tensor inside one of the heads, PEFT's prefix or not."""
    return any(plain_name(name).startswith(f"{head}.") for head in heads)


def plain_name(name: str) -> str:
    """The name of a tensor in the base model, PEFT's prefix taken away."""
    return name.removeprefix(PREFIX)
