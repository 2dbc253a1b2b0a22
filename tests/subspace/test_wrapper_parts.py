"""What wrappers put into the paths of modules is taken out again."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import nn

from sharespace.subspace.naming import unwrapped

LAYER = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "path",
    [
        f"_orig_mod.{LAYER}",
        f"module.{LAYER}",
        f"module.module.{LAYER}",
        f"module._orig_mod.module.{LAYER}",
        f"_fsdp_wrapped_module._checkpoint_wrapped_module.{LAYER}",
        "model.layers.0._orig_mod.self_attn.q_proj",
        "model._fsdp_wrapped_module.layers.0._checkpoint_wrapped_module.self_attn.q_proj._orig_mod",
        LAYER,
    ],
)
@pytest.mark.parametrize("start", ["", "base_model.model."])
def test_wrappers_go_wherever_they_are(path: str, start: str) -> None:
    assert unwrapped(start + path) == start + LAYER


@pytest.mark.parametrize(
    "key", ["module.base_model.model.", "base_model._orig_mod.model.", "base_model.module.model."]
)
def test_wrappers_of_the_peft_model_go_too(key: str) -> None:
    assert unwrapped(f"{key}{LAYER}.lora_A.weight") == f"base_model.model.{LAYER}.lora_A.weight"


def test_a_child_called_module_stays() -> None:
    """LeViT's residual blocks have one."""
    path = "levit.encoder.stages.0.layers.1.module.linear1"
    assert unwrapped(path) == path


def test_names_of_a_compiled_model_are_those_of_the_model() -> None:
    block, model = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    model.append(block)
    names = [name for name, _ in model.named_parameters()]
    block[0] = cast("nn.Module", torch.compile(block[0]))
    wrapped = nn.DataParallel(cast("nn.Module", torch.compile(model)))
    assert all(name.startswith("module._orig_mod.") for name, _ in wrapped.named_parameters())
    assert [unwrapped(name) for name, _ in wrapped.named_parameters()] == names
