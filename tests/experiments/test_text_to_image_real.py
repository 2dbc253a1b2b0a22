"""The recipe for real pipelines, and the way of a real Stable Diffusion adapter.

The pipelines are diffusers' own classes with random weights, far too small to show anything; the
LoRAs are saved as training scripts save them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments_calls import call
from shared_data import public_adapters

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None,
    reason="diffusers is not installed: pip install 'sharespace[diffusers]'",
)
STYLES = ("inked", "mosaic")


def vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        shift_factor=0.0,
    )


def words_and_text() -> tuple[Any, Any]:
    """CLIP's, for a vocabulary of letters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(i) + end for i in range(97, 123) for end in ("", "</w>")]
    names = ["<|startoftext|>", "<|endoftext|>", *letters]
    vocabulary = {name: i for i, name in enumerate(names)}
    words = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        projection_dim=16,
    )
    return words, CLIPTextModel(config)


def stable_diffusion() -> tuple[Any, Any]:
    """Pipeline, and the model that is adapted."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    words, text = words_and_text()
    pipe = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text,
        tokenizer=words,
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, unet


def flux() -> tuple[Any, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    words, text = words_and_text()
    second = T5EncoderModel(
        T5Config(vocab_size=200, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(),
        text_encoder=text,
        tokenizer=words,
        text_encoder_2=second,
        tokenizer_2=T5Tokenizer(model_max_length=12),
        transformer=transformer,
    )
    return pipe, transformer


def save_lora(pipe: Any, model: Any, folder: Path, seed: int) -> None:
    """As diffusers' training scripts do."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v"]))
    torch.manual_seed(seed)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = 0.3 * torch.randn_like(parameter)
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    type(pipe).save_lora_weights(
        folder,
        **{
            f"{part}_lora_layers": get_peft_model_state_dict(model),
            f"{part}_lora_adapter_metadata": model.peft_config["default"].to_dict(),
        },
    )
    model.delete_adapters("default")


# diffusers 0.35 knows no other name for it.
@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
@pytest.mark.parametrize("make", [stable_diffusion, flux])
def test_styles_are_merged_one_by_one(make: Callable[[], tuple[Any, Any]], tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipe, model = make()
    pipe.save_pretrained(tmp_path / "base")
    for seed, name in enumerate(STYLES):
        save_lora(pipe, model, tmp_path / name, seed)
    out = tmp_path / "out"
    loras = [text for name in STYLES for text in ("--lora", f"{name}={tmp_path / name}")]
    numbers = ("--k", "4", "--steps", "2", "--side", "16")
    common = ("--pipeline", tmp_path / "base", "--out", out, *numbers)
    call("real", "text_to_image", *common, *loras, "--prompt", "a fox", "--prompt", "a tree")
    steps = json.loads((out / "results.json").read_text())["steps"]
    assert [list(step) for step in steps] == [["inked"], ["inked", "mosaic"]]
    for step in steps:
        for found in step.values():
            assert found["relative_error"] < 1e-5  # k = 4 holds two LoRAs of rank 2
            assert found["to_own"] < 1e-6 < found["other_noise"]
    assert (out / "step-1.png").is_file()
    assert (out / "step-2.png").is_file()


def test_a_real_adapter_goes_through_share_into_diffusers(tmp_path: Path) -> None:
    (folder,) = public_adapters("stable-diffusion-v1-5")
    part = ("--modules", "mid_block", "--k", "8", "24")
    call("real_adapter", "text_to_image", "--adapter", folder, "--out", tmp_path, *part)
    found = json.loads((tmp_path / "real_adapter.json").read_text())
    assert found["modules"] == 8
    assert found["original_in_diffusers"]["largest_relative_difference"] < 1e-6
    assert not found["original_in_diffusers"]["load_lora_weights_finds_it"]
    for row in found["by_k"]:
        loaded = row["exported_in_diffusers"]
        assert loaded["load_lora_weights_finds_it"]
        assert loaded["largest_relative_difference"] < 1e-5
    assert max(found["by_k"][1]["relative_error"].values()) < 1e-5  # six of rank 4 fit in 24
