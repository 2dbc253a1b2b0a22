"""The modules of a model that carry an update: find them, change their weights and take it back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sharespace.errors import MismatchError
from sharespace.shapes import ModuleShape
from sharespace.subspace.adapter import LayerUpdate


def is_transposed(module: nn.Module) -> bool:
    """True for Conv1D of transformers (GPT-2), whose weight is d x n."""
    return type(module).__name__ == "Conv1D"


def linear_module(model: nn.Module, name: str, shape: ModuleShape) -> nn.Module:
    """The linear module (or Conv1D) of that name.

    Raises:
        MismatchError: the model has no such module, or it has another shape or kind.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise MismatchError(
            f"module {name!r}", "not in this model", "Use the base model the adapters belong to"
        ) from error
    weight = getattr(module, "weight", None)
    met = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    met = met[::-1] if is_transposed(module) else met
    if shape.kind != "linear" or met != (shape.out_features, shape.in_features):
        raise MismatchError(
            f"module {name!r}",
            f"is {type(module).__name__} of {met}, but the update is {shape}",
            "Only linear modules of the base model the adapters belong to are supported",
        )
    return module


def replace_modules(model: nn.Module, new: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Put modules in the place of others; returns those others, by name."""
    originals = {name: model.get_submodule(name) for name in new}
    for name, module in new.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
    return originals


@contextmanager
def applied(
    model: nn.Module,
    updates: Mapping[str, LayerUpdate],
    tensors: Mapping[str, Tensor] | None = None,
) -> Iterator[nn.Module]:
    """The model with W0 + dW for the time of the block; afterwards it is as before, bit for bit.

    Args:
        model: its weights are changed in place.
        updates: module -> update, up n x r and down r x d.
        tensors: parameter name -> value that takes its place, such as a task's head.

    Raises:
        MismatchError: an update does not fit the model; nothing is changed then.
    """
    changed: dict[str, Tensor] = dict(tensors or {})
    for name, update in updates.items():
        shape = ModuleShape(update.up.shape[0], update.down.shape[1])
        module = linear_module(model, name, shape)
        delta = update.scaling * (update.up.double() @ update.down.double())
        weight = model.get_parameter(f"{name}.weight").detach().double()
        changed[f"{name}.weight"] = weight + (delta.mT if is_transposed(module) else delta)
    parameters = {name: model.get_parameter(name) for name in changed}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        _copy(changed, parameters)
        yield model
    finally:
        _copy(before, parameters)


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
