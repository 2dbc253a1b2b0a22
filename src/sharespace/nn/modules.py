"""The modules of a model that carry an update: find them, change their weights and take it back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sharespace.errors import MismatchError
from sharespace.subspace.adapter import LayerUpdate


def is_transposed(module: nn.Module) -> bool:
    """True for Conv1D of transformers (GPT-2), whose weight is d x n."""
    return type(module).__name__ == "Conv1D"


def adapted_module(model: nn.Module, name: str, sides: tuple[int, int]) -> nn.Module:
    """The module of that name, whose weight is n x d (Conv1D: d x n; a convolution: flattened).

    Raises:
        MismatchError: the model has no such module, or it has another shape.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise MismatchError(
            f"module {name!r}", "not in this model", "Use the base model the adapters belong to"
        ) from error
    weight = getattr(module, "weight", None)
    flat = weight.flatten(1) if isinstance(weight, Tensor) and weight.ndim > 1 else None
    met = tuple(flat.shape) if flat is not None else ()
    met = met[::-1] if is_transposed(module) else met
    if met != sides:
        raise MismatchError(
            f"module {name!r}",
            f"is {type(module).__name__} of {met}, but the update is {sides[0]}x{sides[1]}",
            "Use the base model the adapters belong to",
        )
    return module


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
        module = adapted_module(model, name, (update.up.shape[0], update.down.shape[1]))
        delta = update.scaling * (update.up.double() @ update.down.double())
        weight = model.get_parameter(f"{name}.weight").detach().double()
        turned = delta.mT if is_transposed(module) else delta
        changed[f"{name}.weight"] = weight + turned.reshape(weight.shape)
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
