"""An update of a tied weight acts in its own module only, also once it is merged.

Public reports of the kind: huggingface/peft#2018, huggingface/peft#2972,
huggingface/transformers#45127.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sharespace import Share, ShareConfig

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def base() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(input_ids=IDS).logits
    return found


WAYS: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj"]},
]


@pytest.mark.filterwarnings("ignore:.*tie")
@pytest.mark.parametrize("targets", WAYS)
def test_merged_into_a_base_with_tied_embeddings(targets: Any, tmp_path: Path) -> None:
    model = peft.get_peft_model(base(), peft.LoraConfig(r=2, task_type="CAUSAL_LM", **targets))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.manual_seed(len(name))
                parameter.add_(0.2 * torch.randn_like(parameter))
    expected = logits(model)
    model.save_pretrained(tmp_path / "t", save_embedding_layers=False)
    share = Share.from_adapters([str(tmp_path / "t")], k=8)
    merged: Any = share.merge_into_base(base(), "t")
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    changed = "lm_head" in str(targets)
    assert merged.config.tie_word_embeddings != changed
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*tie")
def test_a_share_config_model_merged_by_peft(tmp_path: Path) -> None:
    lora = peft.LoraConfig(r=2, init_lora_weights=False, **WAYS[0])
    peft.get_peft_model(base(), lora).save_pretrained(tmp_path / "t", save_embedding_layers=False)
    Share.from_adapters([str(tmp_path / "t")], k=8).save(tmp_path / "s.share")
    config = ShareConfig(share=str(tmp_path / "s.share"), task="t")
    model = peft.get_peft_model(base(), config)
    expected = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, atol=1e-4, rtol=1e-4)
