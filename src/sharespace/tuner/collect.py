"""A trained adapter out of a ``PeftModel``, ready to be merged into a Share model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from sharespace.errors import MismatchError
from sharespace.formats.components import COMPONENTS
from sharespace.subspace.adapter import LEARNED, Adapter, BaseModel, LayerUpdate, ModuleShape
from sharespace.subspace.state import Task
from sharespace.tuner.layer import SubspaceConv, SubspaceLayer
from sharespace.tuner.modules import PREFIX


def layers_of(model: nn.Module, adapter: str) -> dict[str, SubspaceLayer]:
    """Adapted module, by its name in the base model -> layer.

    Raises:
        MismatchError: no layer has an adapter of that name.
    """
    found = {
        name.removeprefix(PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, SubspaceLayer) and module.has(adapter)
    }
    if not found:
        raise MismatchError(
            f"adapter {adapter!r}",
            "the model has no layers in a Share model's subspace under that name",
            "Make it with get_peft_model(model, ShareConfig(...))",
        )
    return found


def collect(
    model: Any,
    task: str,
    *,
    adapter: str = "default",
    base: BaseModel | None = None,
    config: Mapping[str, object] | None = None,
) -> Adapter:
    """The task as trained so far, temporary directions and heads included.

    Args:
        model: a ``PeftModel`` made with ``ShareConfig``.
        task: the task's name.
        adapter: PEFT's name for it.
        base: of the Share model; None: as the model's configuration says.
        config: more fields of PEFT's ``LoraConfig``, for example ``task_type``.

    Raises:
        MismatchError: the model has no such adapter.
    """
    settings = model.peft_config[adapter]
    component = f"{settings.component}." if settings.component else ""
    layers = {component + n: m for n, m in layers_of(model, adapter).items()}
    updates = {name: layer.update(adapter) for name, layer in layers.items()}
    heads = kept_tensors(model, adapter)
    return Adapter.from_updates(
        task,
        updates,
        base=base or BaseModel(settings.base_model_name_or_path),
        shapes={n: _shape(layer, updates[n]) for n, layer in layers.items()},
        kept=heads,
        config={
            **_lora_fields(settings, updates, bool(heads)),
            # Or an export would put the component before the modules' names once more.
            **({COMPONENTS: [settings.component]} if settings.component else {}),
            **(config or {}),
        },
        provenance=LEARNED,
    )


def kept_tensors(model: Any, adapter: str) -> dict[str, Tensor]:
    """Heads and other modules trained whole, under PEFT's keys."""
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    mine = ("sharespace_", "left_basis", "right_basis")
    return {
        key: value.detach().cpu().clone().contiguous()
        for key, value in state.items()
        if not key.rpartition(".")[2].startswith(mine)
    }


@torch.no_grad()
def trained_coefficients(model: Any, adapter: str, task: Task) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> (E, F) as trained with frozen bases, k x p; a private update's factors, n x q.

    Only for adapters without temporary directions of their own (phi = 0).
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    settings = model.peft_config[adapter]
    component = f"{settings.component}." if settings.component else ""
    for module, layer in layers_of(model, adapter).items():
        name = component + module
        stored = task.coefficients.get(name)
        if stored is not None and not stored.is_shared:
            update = layer.update(adapter)
            found[name] = (update.up, update.down.mT)
        else:
            left, right = layer.coefficients(adapter)
            found[name] = (left.detach().cpu().clone(), right.detach().cpu().clone())
    return found


def _shape(layer: SubspaceLayer, update: LayerUpdate) -> ModuleShape:
    sides = update.up.shape[0], update.down.shape[1]
    if isinstance(layer, SubspaceConv):
        kernel = tuple(layer.innermost.kernel_size)
        return ModuleShape(*sides, kind="conv", kernel=kernel)
    return ModuleShape(*sides)


def _lora_fields(
    settings: Any, updates: Mapping[str, LayerUpdate], heads: bool
) -> dict[str, object]:
    """What an export of the task as plain LoRA says of itself."""
    rank = max((u.up.shape[1] for u in updates.values()), default=0)
    task_type = settings.task_type
    return {
        "peft_type": "LORA",
        "task_type": getattr(task_type, "value", task_type),
        "bias": "none",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(updates),
        "modules_to_save": sorted(settings.modules_to_save) if heads else None,
    }
