"""Coefficients keep their precision and their flags, whatever the base model is kept in."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from learn.nets import adapter, net
from sharespace import Share
from sharespace.tuner import ShareConfig, SubspaceLayer, publish

SHARE = Share.from_adapters([adapter("a", 1), adapter("b", 2)], k=4)
NAME = publish(SHARE.model)


def layers(model: torch.nn.Module) -> list[SubspaceLayer]:
    return [m for m in model.modules() if isinstance(m, SubspaceLayer)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_known_task_is_exact_on_a_base_of_16_bits(dtype: torch.dtype) -> None:
    exact = get_peft_model(net(), ShareConfig(share=NAME, task="a"))
    model = get_peft_model(net().to(dtype), ShareConfig(share=NAME, task="a"))
    for layer, expected in zip(layers(model), layers(exact), strict=True):
        for found, wanted in zip(
            layer.coefficients("default"), expected.coefficients("default"), strict=True
        ):
            assert found.dtype == torch.float32
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_only_the_core_is_trained_in_the_form_core(dtype: torch.dtype, autocast: bool) -> None:
    config = ShareConfig(share=NAME, task="new", form="core", p=3, phi=1)
    model = get_peft_model(net().to(dtype), config, autocast_adapter_dtype=autocast)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".sharespace_core." in name for name in trained)
    model.set_adapter("default")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
    kept = torch.float32 if autocast else dtype
    assert {p.dtype for n, p in model.named_parameters() if n in trained} == {kept}
