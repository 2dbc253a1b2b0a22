"""Give the base model back as it was."""

from __future__ import annotations

from typing import Any

from peft.utils.other import ModulesToSaveWrapper
from torch import nn


def release(model: Any) -> nn.Module:
    """The base model of a ``PeftModel`` without adapters, its own heads in place again.

    PEFT's ``unload`` alone leaves the active adapter's trained head in the model.
    """
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.set_adapter([])
    base: nn.Module = model.unload()
    return base
