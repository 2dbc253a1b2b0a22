"""Heads of tasks that a Share model knows, put where PEFT keeps modules that are trained whole."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from sharespace.errors import MismatchError
from sharespace.subspace.state import Task

PREFIX = "base_model.model."
"""What PEFT puts before the name of every tensor of the base model."""


def head_tensors(task: Task) -> dict[str, Tensor]:
    """What a task carries besides its coefficients, by the name in the base model."""
    return {key.removeprefix(PREFIX): task.kept[key] for key in task.kept}


def head_modules(model: nn.Module, task: Task) -> list[str]:
    """Modules of the base model that hold the task's heads.

    Raises:
        MismatchError: the task carries something that is no whole module of this model.
    """
    modules = dict(model.named_modules())
    saved = task.config.get("modules_to_save") or []
    named = [m for m in modules for s in saved if m == s or m.endswith(f".{s}")]  # type: ignore[attr-defined]
    found: dict[str, None] = {}
    for key in head_tensors(task):
        inside = [m for m in named if key.startswith(f"{m}.")] or [key.partition(".")[0]]
        if inside[0] not in modules or not _has(modules[inside[0]], key[len(inside[0]) + 1 :]):
            raise MismatchError(
                f"task {task.name!r}",
                f"carries {key!r}, which is no part of a module of this model trained whole",
                "Load the base model with the task's head, or export the task as plain LoRA",
            )
        found[min(inside, key=len)] = None
    return list(found)


def _has(module: nn.Module, key: str) -> bool:
    return key in _entries(module)


def _entries(module: nn.Module) -> Mapping[str, Tensor]:
    inner = module.original_module if isinstance(module, ModulesToSaveWrapper) else module
    entries: Mapping[str, Tensor] = inner.state_dict()
    return entries


@torch.no_grad()
def fill_heads(model: nn.Module, adapter: str, task: Task) -> None:
    """Copy the task's heads into the adapter's own copies of those modules.

    Raises:
        MismatchError: a head has another shape in this model.
    """
    tensors = head_tensors(task)
    for name, module in model.named_modules():
        if not isinstance(module, ModulesToSaveWrapper) or adapter not in module.modules_to_save:
            continue
        for key, target in module.modules_to_save[adapter].state_dict().items():
            value = tensors.get(f"{name}.{key}")
            if value is None or target.is_meta:
                continue
            if value.shape != target.shape:
                raise MismatchError(
                    f"head {name!r} of task {task.name!r}",
                    f"{key} is {tuple(value.shape)}, but in this model {tuple(target.shape)}",
                    "Load the base model with the task's number of labels",
                )
            target.copy_(value)
