"""The base model as the router sees it: adapters off, evaluation mode, no gradients, one device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module

from sharespace.errors import OptionError

Batch: TypeAlias = Mapping[str, Any]
"""Keyword arguments of the model's forward; ``attention_mask`` [inputs, tokens] where there is
padding."""


@contextmanager
def as_base(model: Module) -> Iterator[None]:
    """The model in evaluation mode, with the adapters of a PeftModel off; left as it was."""
    modes = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        adapters_off: Any = getattr(model, "disable_adapter", None)
        if adapters_off is not None:  # a PeftModel
            stack.enter_context(adapters_off())
        stack.enter_context(torch.inference_mode())
        model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():  # one by one: parts may be frozen in eval mode
                module.training = training


def base_modules(model: Module) -> dict[str, Module]:
    """The modules by their paths in the base model, also where a PeftModel is around it."""
    base: Any = getattr(model, "get_base_model", lambda: model)()
    return dict(base.named_modules())


def on_device(model: Module, batch: Batch) -> dict[str, Any]:
    """The batch where the model's first parameter is."""
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    return {key: v.to(device) if isinstance(v, Tensor) else v for key, v in batch.items()}


def token_mask(batch: Batch, tokens: Tensor) -> Tensor:
    """1 for each token that counts, 0 for padding, as ``tokens`` [inputs, tokens, d] has them.

    Raises:
        OptionError: the batch's mask has another shape, or leaves an input without a token.
    """
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.ones(tokens.shape[:2], device=tokens.device)
    if mask.shape != tokens.shape[:2]:
        why = f"shape {tuple(mask.shape)}, while the tokens are {tuple(tokens.shape[:2])}"
        raise OptionError("attention_mask", why, "Give one value for each token of each input")
    if not bool(mask.any(dim=1).all()):
        raise OptionError("attention_mask", "an input has no token", "Leave empty inputs out")
    on: Tensor = mask.to(tokens.device, torch.float32)
    return on
