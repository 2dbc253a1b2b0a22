"""kohya's files of SDXL, Flux and SD3 have the modules that diffusers' conversion gives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sharespace import Share
from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.formats import read_adapter
from sharespace.subspace.adapter import Adapter

conversion: Any = pytest.importorskip("diffusers.loaders.lora_conversion_utils")

SDXL = {
    "input_blocks_4_1_transformer_blocks_0_attn1_to_q": (8, 6),
    "input_blocks_4_1_transformer_blocks_0_attn2_to_out_0": (8, 6),
    "input_blocks_4_1_transformer_blocks_1_ff_net_0_proj": (8, 6),
    "input_blocks_4_1_proj_in": (8, 6),
    "input_blocks_8_0_in_layers_2": (8, 6, 3, 3),
    "input_blocks_8_0_emb_layers_1": (8, 6),
    "input_blocks_7_0_skip_connection": (8, 6, 1, 1),
    "input_blocks_3_0_op": (8, 6, 3, 3),
    "middle_block_1_transformer_blocks_0_attn1_to_q": (8, 6),
    "middle_block_0_out_layers_3": (8, 6, 3, 3),
    "middle_block_2_in_layers_2": (8, 6, 3, 3),
    "output_blocks_0_1_transformer_blocks_0_attn1_to_q": (8, 6),
    "output_blocks_5_0_out_layers_3": (8, 6, 3, 3),
    "output_blocks_2_2_conv": (8, 6, 3, 3),
    "input_blocks_0_0": (8, 6, 3, 3),
    "out_2": (8, 6, 3, 3),
    "time_embed_0": (8, 6),
    "label_emb_0_2": (8, 6),
}
FLUX = {
    "double_blocks_0_img_attn_qkv": (24, 6),
    "double_blocks_0_img_attn_proj": (8, 6),
    "double_blocks_3_img_mlp_0": (8, 6),
    "double_blocks_3_img_mlp_2": (8, 6),
    "double_blocks_3_img_mod_lin": (8, 6),
    "double_blocks_7_txt_attn_qkv": (24, 6),
    "double_blocks_7_txt_attn_proj": (8, 6),
    "double_blocks_7_txt_mlp_0": (8, 6),
    "double_blocks_7_txt_mlp_2": (8, 6),
    "double_blocks_7_txt_mod_lin": (8, 6),
    "single_blocks_1_linear1": (7 * 3072, 3072),
    "single_blocks_1_linear2": (8, 6),
    "single_blocks_1_modulation_lin": (8, 6),
}


def _kohya(modules: Mapping[str, tuple[int, ...]], alpha: float = 0.5) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, (n, d, *kernel) in modules.items():
            ones = [1] * len(kernel)
            tensors[f"lora_unet_{name}.lora_down.weight"] = torch.randn(1, d, *kernel)
            tensors[f"lora_unet_{name}.lora_up.weight"] = torch.randn(n, 1, *ones)
            tensors[f"lora_unet_{name}.alpha"] = torch.tensor(alpha)
    return tensors


def _read(tensors: dict[str, Tensor], path: Path) -> Adapter:
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path)
    return read_adapter(path)


def _assert_same_updates(ours: Adapter, theirs: Adapter) -> None:
    assert ours.shapes == theirs.shapes
    for module in ours.shapes:
        a, b = ours.layer(module), theirs.layer(module)
        one, two = a.scaling * a.up @ a.down[:, :50], b.scaling * b.up @ b.down[:, :50]
        torch.testing.assert_close(one, two, msg=module)


def test_sdxl_is_what_diffusers_makes_of_it(tmp_path: Path) -> None:
    tensors = _kohya(SDXL, alpha=1.0)
    config = SimpleNamespace(layers_per_block=2)
    mapped = conversion._maybe_map_sgm_blocks_to_diffusers(dict(tensors), config)
    theirs, _ = conversion._convert_non_diffusers_lora_to_diffusers(mapped)
    ours = _read(tensors, tmp_path / "k.safetensors")
    converted = _read(theirs, tmp_path / "pytorch_lora_weights.safetensors")
    assert len(ours.shapes) == len(SDXL)
    _assert_same_updates(ours, converted)


def test_flux_is_what_diffusers_makes_of_it(tmp_path: Path) -> None:
    tensors = _kohya(FLUX)
    theirs = conversion._convert_kohya_flux_lora_to_diffusers(dict(tensors))
    ours = _read(tensors, tmp_path / "k.safetensors")
    _assert_same_updates(ours, _read(theirs, tmp_path / "pytorch_lora_weights.safetensors"))
    assert len(ours.shapes) == 20


def test_the_swapped_rows_of_flux(tmp_path: Path) -> None:
    tensors = _kohya(
        {"final_layer_adaLN_modulation_1": (8, 6), "double_blocks_0_img_mlp_0": (8, 6)}
    )
    ours = _read(tensors, tmp_path / "k.safetensors")
    up = ours.layer("transformer.norm_out.linear").up
    written = tensors["lora_unet_final_layer_adaLN_modulation_1.lora_up.weight"]
    assert torch.equal(up, conversion.swap_scale_shift(written))


def test_sd3(tmp_path: Path) -> None:
    modules = {
        "joint_blocks_0_x_block_attn_qkv": (18, 6),
        "joint_blocks_0_context_block_attn_qkv": (18, 6),
        "joint_blocks_0_context_block_mlp_fc1": (24, 6),
        "joint_blocks_1_x_block_attn2_qkv": (18, 6),
        "joint_blocks_1_context_block_adaLN_modulation_1": (12, 6),
        "context_embedder": (6, 6),
    }
    ours = _read(_kohya(modules), tmp_path / "k.safetensors")
    assert sorted(ours.shapes) == sorted(
        "transformer." + path
        for path in (
            *(f"transformer_blocks.0.attn.{m}" for m in ("to_q", "to_k", "to_v")),
            *(f"transformer_blocks.0.attn.add_{m}_proj" for m in "qkv"),
            "transformer_blocks.0.ff_context.net.0.proj",
            *(f"transformer_blocks.1.attn2.{m}" for m in ("to_q", "to_k", "to_v")),
            "transformer_blocks.1.norm1_context.linear",
            "context_embedder",
        )
    )


def test_an_upsampler_of_sd15(tmp_path: Path) -> None:
    ours = _read(_kohya({"output_blocks_2_1_conv": (8, 6, 3, 3)}), tmp_path / "k.safetensors")
    assert list(ours.shapes) == ["unet.up_blocks.0.upsamplers.0.conv"]


def test_what_has_no_name_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError, match=r"img_attn.unknown.*no name in diffusers"):
        _read(_kohya({"double_blocks_0_img_attn_unknown": (8, 6)}), tmp_path / "k.safetensors")
    with pytest.raises(UnsupportedAdapterError, match="linear1"):
        _read(_kohya({"single_blocks_0_linear1": (8, 6)}), tmp_path / "k.safetensors")


@pytest.mark.parametrize("shape", [(), (4,)])
def test_factors_without_rows_and_columns(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensors = _kohya({"double_blocks_0_img_attn_qkv": (12, 4)})
    key = next(key for key in tensors if key.endswith("lora_up.weight"))
    with pytest.raises(CorruptAdapterError, match="has shape"):
        _read({**tensors, key: torch.ones(shape)}, tmp_path / "x.safetensors")


def test_it_shares_its_layers_with_an_adapter_of_diffusers(tmp_path: Path) -> None:
    name = "input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    kohya = _read(_kohya({name: (8, 6)}), tmp_path / "k.safetensors")
    module = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = {"A": torch.randn(2, 6), "B": torch.randn(8, 2)}
    keys = {f"{module}.lora_{f}.weight": tensor for f, tensor in pair.items()}
    share = Share.from_adapters([kohya, _read(keys, tmp_path / "d.safetensors")], k=3)
    assert list(share.model.layers) == [module]


def test_converters_that_write_underscores(tmp_path: Path) -> None:
    key = "lora_unet_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q_lora_"
    tensors = {f"{key}down.weight": torch.randn(4, 6), f"{key}up.weight": torch.randn(8, 4)}
    ours = _read(tensors, tmp_path / "new.safetensors")
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert list(ours.shapes) == [f"unet.{module}"]
