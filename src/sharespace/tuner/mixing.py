"""A forward pass whose rows belong to different adapters: layers, heads and the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sharespace.errors import MismatchError
from sharespace.tuner.subspace_layer import RowAdapters, SubspaceLayer


@contextmanager
def mixing(model: nn.Module, routing: RowAdapters | None) -> Iterator[None]:
    """Forward passes of the model inside the block go through the adapters that ``routing`` names.

    Layers keep the routing until the next pass, because gradient checkpointing runs them again in
    the backward pass; heads lose it at the end of the block.

    Args:
        model: the base model with its adapters.
        routing: None: the active adapters for all rows.
    """
    layers = [module for module in model.modules() if isinstance(module, SubspaceLayer)]
    heads: list[ModulesToSaveWrapper] = []
    handles = []
    _route(layers, routing)
    if routing is not None:
        heads = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
        for head in heads:
            # PEFT's own takes plain linear layers only, and the base model's head for all rows
            # where the active adapter has none.
            head.forward = partial(_mixed_head, head, routing)
    if torch.is_grad_enabled() and (routing is not None or _recomputes(model)):
        hook = partial(_route_in_backward, layers=layers, routing=routing)
        handles.append(model.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for head in heads:
            del head.forward
        if not torch.is_grad_enabled():
            _route(layers, None)


def _recomputes(model: nn.Module) -> bool:
    """True with gradient checkpointing, as transformers and diffusers mark it."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _route(layers: list[SubspaceLayer], routing: RowAdapters | None) -> None:
    for layer in layers:
        layer.routing = routing


def _route_in_backward(
    module: nn.Module,
    args: object,
    output: object,
    layers: list[SubspaceLayer],
    routing: RowAdapters | None,
) -> None:
    """Forward hook: the backward pass runs layers again with the routing of *its* forward pass.

    Another pass may come in between (a reference model's, an evaluation).
    """

    def restore(gradient: Tensor) -> None:
        _route(layers, routing)

    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            leaf.register_hook(restore)  # type: ignore[no-untyped-call]


def _mixed_head(
    head: ModulesToSaveWrapper, routing: RowAdapters, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Every row through its own copy of the head; the base model's where an adapter has none.

    Raises:
        MismatchError: the outputs have different sizes, as heads for 2 and for 3 labels have.
    """
    if head.disable_adapters:
        plain: Tensor = head.original_module(x, *args, **kwargs)
        return plain
    rows = routing.rows(len(x))
    index, outputs = [], []
    for name in dict.fromkeys(rows):
        own_rows = torch.tensor([i for i, row in enumerate(rows) if row == name], device=x.device)
        copies = head.modules_to_save
        module = copies[name] if name in copies else head.original_module  # noqa: SIM401
        outputs.append(module(x[own_rows], *args, **kwargs))
        index.append(own_rows)
    sizes = {tuple(o.shape[1:]) for o in outputs}
    if len(sizes) > 1:
        raise MismatchError(
            "adapter_names",
            f"the tasks' heads give outputs of different sizes, {sorted(sizes)}",
            "Give each batch only tasks with the same number of labels",
        )
    return torch.cat(outputs)[torch.cat(index).argsort()]
