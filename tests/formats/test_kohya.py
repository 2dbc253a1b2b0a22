"""kohya's files: flattened names, alphas, text encoders, and what no module owns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from sharespace.errors import CorruptAdapterError
from sharespace.formats import read_adapter
from sharespace.formats.kohya import flatten, unflatten
from sharespace.subspace.adapter import ModuleShape

PATHS = [
    "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0",
    "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.2",
    "mid_block.attentions.0.proj_in",
    "mid_block.attentions.0.proj_out",
    "down_blocks.1.resnets.0.conv1",
    "down_blocks.1.resnets.0.conv_shortcut",
    "down_blocks.1.resnets.0.time_emb_proj",
    "down_blocks.1.downsamplers.0.conv",
    "up_blocks.1.upsamplers.0.conv",
    "time_embedding.linear_1",
    "add_embedding.linear_2",
    "conv_in",
    "conv_out",
    "input_blocks.4.1.transformer_blocks.0.attn1.to_k",
    "middle_block.1.proj_in",
    "output_blocks.3.0.in_layers.2",
    "input_blocks.1.0.emb_layers.1",
    "output_blocks.3.0.skip_connection",
    "label_emb.0.0",
    "double_blocks.0.img_attn.qkv",
    "single_blocks.3.linear1",
    "single_transformer_blocks.0.proj_mlp",
    "transformer_blocks.0.attn.add_q_proj",
    "text_model.encoder.layers.3.self_attn.q_proj",
    "text_model.encoder.layers.3.self_attn.out_proj",
    "text_model.encoder.layers.3.mlp.fc1",
    "encoder.block.0.layer.1.DenseReluDense.wi_0",
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_come_back(path: str) -> None:
    assert unflatten(flatten(path)) == path


@given(st.text(alphabet="abc_019", max_size=40))
def test_any_name_is_given_back(name: str) -> None:
    assert flatten(unflatten(name)) == name


@given(st.lists(st.sampled_from(["to_q", "unknown", "proj", "in", "0", "text", "model", ""])))
def test_words_in_any_order_are_given_back(words: list[str]) -> None:
    assert flatten(unflatten("_".join(words))) == "_".join(words)


def test_unknown_words_are_split_at_every_underscore() -> None:
    assert unflatten("my_new_block_0_to_q") == "my.new.block.0.to_q"


def kohya_file(path: Path, **extra: Tensor) -> Path:
    def module(key: str, r: int, alpha: float | None, *kernel: int) -> dict[str, Tensor]:
        ones = (1,) * len(kernel)
        tensors = {
            f"{key}.lora_down.weight": torch.randn(r, 6, *kernel),
            f"{key}.lora_up.weight": torch.randn(8, r, *ones),
        }
        return tensors | ({} if alpha is None else {f"{key}.alpha": torch.tensor(alpha)})

    tensors = {
        **module("lora_unet_mid_block_attentions_0_proj_in", 4, 2.0, 1, 1),
        **module("lora_unet_down_blocks_0_resnets_0_conv1", 2, 1.0, 3, 3),
        **module("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", 4, None),
        **module("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 4, 4.0),
        **module("lora_te2_text_model_encoder_layers_0_mlp_fc1", 8, 4.0),
        **extra,
    }
    save_file(tensors, path, metadata={"ss_network_dim": "4", "ss_seed": "7"})
    return path


def test_modules_shapes_and_scalings(tmp_path: Path) -> None:
    adapter = read_adapter(kohya_file(tmp_path / "style.safetensors"))
    assert adapter.name == "style"
    assert adapter.provenance.format == "kohya"
    query = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    fc1 = "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
    assert adapter.shapes == {
        "unet.mid_block.attentions.0.proj_in": ModuleShape(8, 6, "conv", (1, 1)),
        "unet.down_blocks.0.resnets.0.conv1": ModuleShape(8, 54, "conv", (3, 3)),
        query: ModuleShape(8, 6),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": ModuleShape(8, 6),
        fc1: ModuleShape(8, 6),
    }
    scalings = {module: adapter.layer(module).scaling for module in adapter.shapes}
    assert list(scalings.values()).count(0.5) == 3
    assert scalings[query] == 1.0
    assert not adapter.kept
    assert adapter.config["__metadata__"] == {"ss_network_dim": "4", "ss_seed": "7"}


def test_what_no_module_owns_is_kept(tmp_path: Path) -> None:
    embedding = torch.randn(2, 8)
    path = kohya_file(
        tmp_path / "x.safetensors",
        **{"bundle_emb.word.string_to_param.*": embedding, "lora_te_alone.alpha": torch.ones(1)},
    )
    adapter = read_adapter(path)
    assert set(adapter.kept) == {"bundle_emb.word.string_to_param.*", "lora_te_alone.alpha"}
    assert torch.equal(adapter.kept["bundle_emb.word.string_to_param.*"], embedding)


def test_every_key_is_accounted_for(tmp_path: Path) -> None:
    path = kohya_file(tmp_path / "x.safetensors")
    adapter = read_adapter(path)
    assert adapter.nbytes == sum(t.numel() * t.element_size() for t in load_file(path).values())


@pytest.mark.parametrize("alpha", [torch.tensor(float("nan")), torch.ones(2)])
def test_alphas_that_are_not_one_number(alpha: Tensor, tmp_path: Path) -> None:
    key = "lora_unet_mid_block_attentions_0_proj_in.alpha"
    with pytest.raises(CorruptAdapterError, match=r"proj_in\.alpha"):
        read_adapter(kohya_file(tmp_path / "x.safetensors", **{key: alpha}))


def test_te_and_te1_are_one_module(tmp_path: Path) -> None:
    flat = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    extra = {
        f"{flat}.lora_down.weight": torch.ones(2, 6),
        f"{flat}.lora_up.weight": torch.ones(8, 2),
    }
    with pytest.raises(CorruptAdapterError, match="both A of module"):
        read_adapter(kohya_file(tmp_path / "x.safetensors", **extra))
