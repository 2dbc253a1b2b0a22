"""Pipelines of diffusers: several models, of which a task may adapt more than one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from sharespace.errors import MismatchError

_DENOISERS = ("unet", "transformer")


def as_module(model: Any, adapted: Iterable[str]) -> nn.Module:
    """The module in which the adapted modules are found by their names.

    Args:
        model: a model, or a pipeline of diffusers.
        adapted: names; a pipeline's begin with the component ("unet.", "text_encoder."), or, if
            none does, are those of its denoiser.

    Raises:
        MismatchError: neither a model nor a pipeline.
    """
    if isinstance(model, nn.Module):
        return model
    components = getattr(model, "components", None)
    if not isinstance(components, dict):
        raise MismatchError(
            f"{type(model).__name__}",
            "neither a torch module nor a pipeline of diffusers",
            "Give the base model itself",
        )
    found = {name: c for name, c in components.items() if isinstance(c, nn.Module)}
    if not any(name.partition(".")[0] in found for name in adapted):
        for denoiser in _DENOISERS:
            if denoiser in found:
                return found[denoiser]
    return nn.ModuleDict(found)


def guided_copies(model: Any) -> int:
    """How often guidance repeats the batch: 2 while a pipeline says that it guides, else 1."""
    guides = not isinstance(model, nn.Module) and getattr(
        model, "do_classifier_free_guidance", False
    )
    return 2 if guides else 1
