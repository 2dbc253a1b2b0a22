"""diffusers: a tiny UNet's LoRA, saved and loaded by the real diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.formats import ExportOptions, PlainLora, read_adapter, write_adapter
from sharespace.subspace.adapter import Adapter
from support_formats import export

WEIGHTS = "pytorch_lora_weights.safetensors"
# PEFT 0.21 warns of every lora_B.bias as if it were a shard of a matrix.
pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'. .* invalid shape")
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1", "time_emb_proj", "ff.net.2"]


def unet() -> UNet2DConditionModel:
    """The same tiny UNet every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8,
            in_channels=2,
            out_channels=2,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=4,
            norm_num_groups=4,
        ).eval()


def run(model: Any) -> Tensor:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        sample, context = torch.randn(1, 2, 8, 8), torch.randn(1, 3, 8)
        output: Tensor = model(sample, 5, context).sample
    return output


def trained(**config: Any) -> UNet2DConditionModel:
    model = unet()
    model.add_adapter(LoraConfig(**({"r": 3, "lora_alpha": 6, "target_modules": TARGETS} | config)))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data = torch.randn_like(parameter) * 0.3
    return model.eval()


def save(model: UNet2DConditionModel, folder: Path, metadata: bool = True) -> Path:
    """As diffusers' training scripts do."""
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(model),
        unet_lora_adapter_metadata=model.peft_config["default"].to_dict() if metadata else None,
    )
    return folder


def diffusers_output(folder: Path) -> Tensor:
    """By the loader behind ``load_lora_weights``."""
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        folder, weight_name=WEIGHTS, return_lora_metadata=True
    )
    model = unet()
    StableDiffusionPipeline.load_lora_into_unet(
        state, network_alphas=alphas, unet=model, metadata=metadata
    )
    return run(model.eval())


def export_diffusers(adapter: Adapter, folder: Path, **options: Any) -> Path:
    updates = {module: adapter.layer(module) for module in adapter.shapes}
    (path,) = write_adapter(
        folder,
        PlainLora(updates, shapes=adapter.shapes, kept=adapter.kept, config=dict(adapter.config)),
        ExportOptions(**options),
        to="diffusers",
    )
    return path


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "patterns": {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k": 1}},
    "rsLoRA": {"use_rslora": True},
    "lora_bias": {"lora_bias": True, "target_modules": ["to_out.0", "conv1"]},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_through_diffusers(name: str, tmp_path: Path) -> None:
    model = trained(**CONFIGS[name])
    expected = run(model)
    adapter = read_adapter(save(model, tmp_path / "a"))
    export_diffusers(adapter, tmp_path / "b")
    torch.testing.assert_close(diffusers_output(tmp_path / "b"), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_export_to_peft(name: str, tmp_path: Path) -> None:
    model = trained(**CONFIGS[name])
    expected = run(model)
    adapter = read_adapter(save(model, tmp_path / "a"))
    (folder,) = export(adapter, tmp_path / "b")
    loaded = PeftModel.from_pretrained(unet(), folder).eval()
    torch.testing.assert_close(run(loaded), expected, atol=2e-5, rtol=1e-4)


def test_without_metadata_scaling_is_one(tmp_path: Path) -> None:
    adapter = read_adapter(save(trained(), tmp_path / "a", metadata=False))
    assert {adapter.layer(module).scaling for module in adapter.shapes} == {1.0}
    assert adapter.ranks == dict.fromkeys(adapter.shapes, 3)


def test_a_model_saved_alone(tmp_path: Path) -> None:
    model = trained()
    model.save_lora_adapter(tmp_path / "alone")
    alone = read_adapter(tmp_path / "alone")
    whole = read_adapter(save(model, tmp_path / "whole"))
    assert alone.shapes == whole.shapes
    for module in alone.shapes:
        assert alone.layer(module).scaling == 2.0
        assert torch.equal(alone.layer(module).up, whole.layer(module).up)


def test_kohya_is_the_same_adapter(tmp_path: Path) -> None:
    """The file as kohya's scripts name it: same modules, same updates, same loader's output."""
    adapter = read_adapter(save(trained(), tmp_path / "a"))
    tensors = {}
    for module in adapter.shapes:
        flat = module.replace("unet.", "lora_unet_", 1).replace(".", "_")
        key = f"{module}.lora_%s.weight"
        saved = load_file(tmp_path / "a" / WEIGHTS)
        tensors[f"{flat}.lora_down.weight"] = saved[key % "A"]
        tensors[f"{flat}.lora_up.weight"] = saved[key % "B"]
        tensors[f"{flat}.alpha"] = torch.tensor(6.0)
    save_file(tensors, tmp_path / "k.safetensors")
    kohya = read_adapter(tmp_path / "k.safetensors")
    export_diffusers(kohya, tmp_path / "b")
    torch.testing.assert_close(
        diffusers_output(tmp_path / "b"), diffusers_output(tmp_path / "a"), atol=2e-5, rtol=1e-4
    )
    assert kohya.shapes == adapter.shapes
    for module in kohya.shapes:
        assert torch.equal(kohya.layer(module).up, adapter.layer(module).up)
        assert kohya.layer(module).scaling == adapter.layer(module).scaling == 2.0


def text_encoder() -> CLIPTextModel:
    """The same tiny text encoder every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=20,
                hidden_size=8,
                intermediate_size=12,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=6,
                bos_token_id=1,
                eos_token_id=2,
            )
        ).eval()


def test_text_encoders_of_kohya_load_in_diffusers(tmp_path: Path) -> None:
    sizes = {"self_attn_q_proj": (8, 8), "self_attn_out_proj": (8, 8), "mlp_fc1": (12, 8)}
    tensors = {}
    for name, (n, d) in sizes.items():
        flat = f"lora_te_text_model_encoder_layers_0_{name}"
        tensors[f"{flat}.lora_down.weight"] = torch.randn(2, d)
        tensors[f"{flat}.lora_up.weight"] = torch.randn(n, 2)
        tensors[f"{flat}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "k.safetensors")
    adapter = read_adapter(tmp_path / "k.safetensors")
    export_diffusers(adapter, tmp_path / "b")
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        tmp_path / "b", weight_name=WEIGHTS, return_lora_metadata=True
    )
    loaded, expected = text_encoder(), text_encoder()
    StableDiffusionPipeline.load_lora_into_text_encoder(
        state, network_alphas=alphas, text_encoder=loaded, metadata=metadata
    )
    for module in adapter.shapes:
        update = adapter.layer(module)
        path = module.removeprefix("text_encoder.")
        path = path if hasattr(expected, "text_model") else path.removeprefix("text_model.")
        expected.get_submodule(path).weight.data += update.scaling * update.up @ update.down
    tokens = torch.tensor([[1, 5, 7, 2]])
    torch.testing.assert_close(
        loaded.eval()(tokens).last_hidden_state, expected(tokens).last_hidden_state
    )


def test_an_adapter_of_peft_for_diffusers(tmp_path: Path) -> None:
    """Also one with fields that the diffusers of the reader does not know."""
    model = get_peft_model(unet(), LoraConfig(r=2, lora_alpha=3, target_modules=["to_q"]))
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = torch.randn_like(parameter) * 0.3
    model.save_pretrained(tmp_path / "a")
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"of_the_future": 1}))
    export_diffusers(read_adapter(tmp_path / "a"), tmp_path / "b", component="unet")
    expected = run(model.eval())
    torch.testing.assert_close(diffusers_output(tmp_path / "b"), expected, atol=2e-5, rtol=1e-4)


def test_old_keys(tmp_path: Path) -> None:
    model = trained(target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    expected = run(model)
    whole = read_adapter(save(model, tmp_path / "a"))
    renamed = {}
    for key, tensor in load_file(tmp_path / "a" / WEIGHTS).items():
        key = key.replace(".to_out.0.", ".to_out.").removeprefix("unet.")
        for word in ("to_q", "to_k", "to_v", "to_out"):
            key = key.replace(f".{word}.lora_A", f".processor.{word}_lora.down")
            key = key.replace(f".{word}.lora_B", f".processor.{word}_lora.up")
        renamed[key] = tensor * 2 if ".up." in key else tensor
    save_file(renamed, tmp_path / "old.safetensors")
    old = read_adapter(tmp_path / "old.safetensors")
    assert old.shapes == whole.shapes
    export_diffusers(old, tmp_path / "b")
    torch.testing.assert_close(diffusers_output(tmp_path / "b"), expected, atol=2e-5, rtol=1e-4)


def pair(module: str) -> dict[str, Tensor]:
    return {
        f"{module}.lora_A.weight": torch.randn(2, 4),
        f"{module}.lora_B.weight": torch.randn(4, 2),
    }


def test_several_components_are_several_peft_folders(tmp_path: Path) -> None:
    tensors = {
        **pair("unet.mid_block.a"),
        **pair("text_encoder.text_model.b"),
        "unet.mid_block.a.lora_magnitude_vector": torch.ones(4),
        "extra": torch.ones(1),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"trainer": "mine"})
    adapter = read_adapter(tmp_path / "x.safetensors")
    folders = export(adapter, tmp_path / "b")
    assert folders == [tmp_path / "b" / "text_encoder", tmp_path / "b" / "unet"]
    text, image = (read_adapter(folder) for folder in folders)
    assert list(text.shapes) == ["text_model.b"]
    assert list(image.shapes) == ["mid_block.a"]
    assert list(image.kept) == ["base_model.model.mid_block.a.lora_magnitude_vector"]
    assert image.config["use_dora"] is True
    assert not text.config["use_dora"]
    assert text.config["__metadata__"] == {"trainer": "mine"}
    again = read_adapter(export_diffusers(adapter, tmp_path / "c"))
    assert set(again.kept) == {"unet.mid_block.a.lora_magnitude_vector", "extra"}


def test_alphas_beside_factors(tmp_path: Path) -> None:
    tensors = pair("unet.conv_in.x") | {"unet.conv_in.x.alpha": torch.tensor(5.0)}
    save_file(tensors, tmp_path / "x.safetensors")
    adapter = read_adapter(tmp_path / "x.safetensors")
    assert adapter.layer("unet.conv_in.x").scaling == 2.5
    assert not adapter.kept


def test_alphas_against_the_header(tmp_path: Path) -> None:
    tensors = pair("unet.conv_in.x") | {"unet.conv_in.x.alpha": torch.tensor(5.0)}
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 4})}
    save_file(tensors, tmp_path / "x.safetensors", metadata=header)
    with pytest.raises(CorruptAdapterError, match="by the header"):
        read_adapter(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("{", CorruptAdapterError, "lora_adapter_metadata"),
        ("[]", CorruptAdapterError, "lora_adapter_metadata"),
        ('{"unet.r": 3}', CorruptAdapterError, "tensors have rank 2"),
        ('{"unet.peft_type": "LOKR", "unet.r": 2}', UnsupportedAdapterError, "LOKR"),
        ('{"unet.init_lora_weights": "pissa", "unet.r": 2}', UnsupportedAdapterError, "pissa"),
    ],
)
def test_broken_headers(text: str, error: type[Exception], named: str, tmp_path: Path) -> None:
    header = {"lora_adapter_metadata": text}
    save_file(pair("unet.conv_in.x"), tmp_path / "x.safetensors", metadata=header)
    with pytest.raises(error, match=named):
        read_adapter(tmp_path / "x.safetensors")


def test_a_bias_scaled_by_an_alpha(tmp_path: Path) -> None:
    module = "unet.conv_in.x"
    extra = {f"{module}.alpha": torch.tensor(5.0), f"{module}.lora_B.bias": torch.ones(4)}
    save_file(pair(module) | extra, tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedAdapterError, match="scaled by an alpha"):
        read_adapter(tmp_path / "x.safetensors")
