"""Formats are told by their keys, not by file names; names of adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sharespace.errors import CorruptAdapterError
from sharespace.formats import default_name, read_adapter


def pair(module: str, down: str, up: str) -> dict[str, Tensor]:
    return {f"{module}{down}": torch.randn(2, 4), f"{module}{up}": torch.randn(4, 2)}


OLD = ("_lora.down.weight", "_lora.up.weight")
NEW = (".lora.down.weight", ".lora.up.weight")
PEFT = (".lora_A.weight", ".lora_B.weight")
KOHYA = (".lora_down.weight", ".lora_up.weight")
ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1"


@pytest.mark.parametrize(
    ("tensors", "format", "module"),
    [
        (pair(f"{ATTENTION}.processor.to_q", *OLD), "diffusers", f"unet.{ATTENTION}.to_q"),
        (pair(f"unet.{ATTENTION}.processor.to_q", *OLD), "diffusers", f"unet.{ATTENTION}.to_q"),
        (pair(f"{ATTENTION}.processor.to_out", *OLD), "diffusers", f"unet.{ATTENTION}.to_out.0"),
        (pair(f"unet.{ATTENTION}.to_k", *NEW), "diffusers", f"unet.{ATTENTION}.to_k"),
        (pair(f"unet.{ATTENTION}.to_k", *PEFT), "diffusers", f"unet.{ATTENTION}.to_k"),
        (pair(f"{ATTENTION}.to_k", *PEFT), "diffusers", f"unet.{ATTENTION}.to_k"),
        (pair("transformer.x.to_k", *PEFT), "diffusers", "transformer.x.to_k"),
        (
            pair("text_encoder.text_model.encoder.layers.0.self_attn.to_out", *OLD),
            "diffusers",
            "text_encoder.text_model.encoder.layers.0.self_attn.out_proj",
        ),
        (
            pair(
                "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer",
                ".down.weight",
                ".up.weight",
            ),
            "diffusers",
            "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj",
        ),
        (
            pair("text_encoder.text_model.encoder.layers.0.self_attn.to_q", *OLD),
            "diffusers",
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        ),
        (
            pair(f"lora_unet_{ATTENTION.replace('.', '_')}_to_q", *KOHYA),
            "kohya",
            f"unet.{ATTENTION}.to_q",
        ),
    ],
)
def test_format_by_content(
    tensors: dict[str, Tensor], format: str, module: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    adapter = read_adapter(tmp_path)
    assert adapter.provenance.format == format
    assert list(adapter.shapes) == [module]


def test_a_config_makes_plain_keys_peft(tmp_path: Path) -> None:
    save_file(pair("transformer.h.0", *PEFT), tmp_path / "any.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    adapter = read_adapter(tmp_path)
    assert adapter.provenance.format == "peft"
    assert list(adapter.shapes) == ["transformer.h.0"]


def test_peft_keys_without_config(tmp_path: Path) -> None:
    save_file(pair("base_model.model.a", *PEFT), tmp_path / "x.safetensors")
    with pytest.raises(CorruptAdapterError, match=r"adapter_config\.json"):
        read_adapter(tmp_path / "x.safetensors")


def test_no_lora_at_all(tmp_path: Path) -> None:
    save_file({"model.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(
        CorruptAdapterError,
        match=r"no LoRA tensor of a format that is known \(keys: model\.weight\)",
    ):
        read_adapter(tmp_path / "x.safetensors")


def test_keys_of_an_unknown_trainer(tmp_path: Path) -> None:
    save_file(pair("lycoris_a", *KOHYA), tmp_path / "x.safetensors")
    with pytest.raises(CorruptAdapterError, match="of PEFT, diffusers, kohya or mlx-lm"):
        read_adapter(tmp_path / "x.safetensors")


def test_safetensors_go_before_bin(tmp_path: Path) -> None:
    save_file(pair("unet.conv_in", *PEFT), tmp_path / "pytorch_lora_weights.safetensors")
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"nothing")
    assert list(read_adapter(tmp_path).shapes) == ["unet.conv_in"]


def test_leftovers_of_a_training_are_passed_over(tmp_path: Path) -> None:
    save_file(pair("unet.conv_in", *PEFT), tmp_path / "pytorch_lora_weights.safetensors")
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth"):
        (tmp_path / name).write_bytes(b"nothing")
    assert list(read_adapter(tmp_path).shapes) == ["unet.conv_in"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("my-lora/adapter_model.safetensors", "my-lora"),
        ("my-lora/adapter_model.bin", "my-lora"),
        ("my-lora/pytorch_lora_weights.safetensors", "my-lora"),
        ("my-lora/style.v1.safetensors", "style.v1"),
        ("my-lora", "my-lora"),
        ("user/repo@v1.2", "repo"),
    ],
)
def test_default_names(path: str, name: str) -> None:
    assert default_name(path) == name


def test_a_folder_with_a_dot_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "my.bin").mkdir()
    assert default_name(tmp_path / "my.bin") == "my.bin"


def test_names_and_sources_show_no_absolute_path(tmp_path: Path) -> None:
    save_file(pair("unet.conv_in", *PEFT), tmp_path / "style.safetensors")
    adapter = read_adapter(tmp_path / "style.safetensors", name="mine")
    assert adapter.name == "mine"
    assert adapter.provenance.source == f"{tmp_path.name}/style.safetensors"
