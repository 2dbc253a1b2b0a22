"""A folder for vLLM: no field that it refuses or misreads, and what it can't take is refused.

vLLM's own loader reads such folders in ``make vllm`` (``hosts/vllm_load.py``).
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from sharespace.errors import OptionError, UnsupportedAdapterError
from sharespace.formats import ExportOptions, PlainLora, read_adapter, write_adapter
from sharespace.formats.vllm_target import max_lora_rank
from sharespace.subspace.adapter import LayerUpdate, ModuleShape
from support_export import changed, dense, llama, logits, lora_of

CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 6,
    "rank_pattern": {"k_proj": 3},
    "alpha_pattern": {"k_proj": 5},
    "use_rslora": True,
    "bias": "lora_only",
    "use_dora": True,
    "modules_to_save": ["lm_head"],
    "init_lora_weights": "eva",
    "lora_bias": True,
    "target_modules": "all-linear",
}
PREFIX = "base_model.model."


def write(lora: PlainLora, folder: Path, **options: Any) -> dict[str, Any]:
    assert write_adapter(folder, lora, ExportOptions(**options), to="vllm") == [folder]
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return found


def test_one_rank_scaling_one_and_nothing_that_vllm_refuses(tmp_path: Path) -> None:
    fields = write(replace(lora_of(llama()), config=CONFIG), tmp_path / "x")
    assert fields["r"] == fields["lora_alpha"] == 4
    assert fields["bias"] == "none"
    assert fields["use_rslora"] is False
    refused = {"use_dora", "modules_to_save", "lora_bias", "rank_pattern", "alpha_pattern"}
    assert not refused & set(fields)


def test_a_tensor_of_every_module_and_no_other(tmp_path: Path) -> None:
    lora = lora_of(llama())
    write(lora, tmp_path / "x")
    found = load_file(tmp_path / "x" / "adapter_model.safetensors")
    assert set(found) == {f"{PREFIX}{m}.lora_{f}.weight" for m in lora.updates for f in "AB"}
    for module, update in lora.updates.items():
        up, down = (found[f"{PREFIX}{module}.lora_{f}.weight"] for f in "BA")
        assert down.shape[0] == up.shape[1] == 4
        torch.testing.assert_close(up @ down, dense(update))


def test_peft_gives_the_same_model(tmp_path: Path) -> None:
    lora = lora_of(llama())
    write(lora, tmp_path / "x", rank=8)
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "x").eval()
    torch.testing.assert_close(logits(loaded), logits(changed(llama(), lora)))


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("score.weight", "heads"),
        ("model.layers.0.self_attn.q_proj.bias", "biases"),
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA magnitudes"),
        ("model.embed_tokens.lora_embedding_A", "LoRA of embeddings"),
        ("model.layers.0.self_attn.q_proj.lora_B.bias", "biases of factors"),
        ("model.layers.0.mlp.experts.lora_A.weight", "factors that are kept as they are"),
    ],
)
@pytest.mark.parametrize("to", ["vllm", "sglang", "gguf"])
def test_more_than_lora_is_refused(to: str, key: str, kind: str, tmp_path: Path) -> None:
    lora = replace(lora_of(llama()), kept={PREFIX + key: torch.ones(2)})
    with pytest.raises(UnsupportedAdapterError, match=f"carries {kind} beside"):
        write_adapter(tmp_path / "x", lora, to=to)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["vllm", "sglang", "gguf"])
def test_other_refusals(to: str, tmp_path: Path) -> None:
    plain = lora_of(llama())

    def refused(lora: PlainLora, why: str) -> None:
        with pytest.raises(UnsupportedAdapterError, match=why):
            write_adapter(tmp_path / "x", lora, to=to)
        assert not list(tmp_path.iterdir())

    module = next(iter(plain.updates))
    conv = ModuleShape(32, 32, "conv", (1, 1))
    refused(replace(plain, shapes={module: conv}), "is a convolution")
    refused(replace(plain, config={"alora_invocation_tokens": [1]}), "aLoRA")
    refused(replace(plain, config={"__components__": ["unet"]}), "diffusers pipeline")


def test_ranks_that_vllm_takes(tmp_path: Path) -> None:
    assert [max_lora_rank(r) for r in (1, 2, 16, 17, 257, 512)] == [1, 8, 16, 32, 320, 512]
    updates = {"model.layers.0.mlp.up_proj": LayerUpdate(torch.ones(4, 513), torch.ones(513, 4))}
    with pytest.raises(OptionError, match="513: vLLM takes at most 512"):
        write_adapter(tmp_path / "x", PlainLora(updates, {}, {}, {}), to="vllm")


def test_vllms_own_loader(tmp_path: Path) -> None:
    """Where an environment with vLLM is named: ``make vllm`` does."""
    python = os.environ.get("SHARESPACE_VLLM_PYTHON")
    if not python:
        pytest.skip("no environment with vLLM named: make vllm")
    lora = replace(lora_of(llama()), config=CONFIG)
    write(lora, tmp_path / "x")
    script = Path(__file__).parents[1] / "serve" / "hosts" / "vllm_load.py"
    subprocess.run([python, script, tmp_path / "x", tmp_path / "seen"], check=True)
    seen = load_file(tmp_path / "seen")
    assert set(seen) == set(lora.updates)
    ours = read_adapter(tmp_path / "x")
    for module, product in seen.items():
        torch.testing.assert_close(product, dense(ours.layer(module)))
        torch.testing.assert_close(product, dense(lora.updates[module]))
