"""kohya's form: our reader and diffusers' get the same updates back, and nothing is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from formats.test_diffusers import run, text_encoder, unet
from shared_data import public_adapters
from sharespace import Adapter, Share, read_adapter
from sharespace.errors import UnsupportedAdapterError
from sharespace.formats import ExportOptions, PlainLora, write_adapter
from sharespace.subspace.adapter import LayerUpdate, ModuleShape
from support_export import dense

WORDS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2"),
    *("time_emb_proj", "net.2", "net.0.proj", "conv_shortcut", "linear_1", "conv_in"),
)
PIPELINE = {"__components__": ["text_encoder", "unet"]}
TOKENS = torch.tensor([[1, 5, 7, 2]])


def updates_of(model: nn.Module, component: str, words: tuple[str, ...]) -> PlainLora:
    """Random updates of linear layers and convolutions, by the component's names."""
    draw = torch.Generator().manual_seed(3)
    updates: dict[str, LayerUpdate] = {}
    shapes: dict[str, ModuleShape] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not name.endswith(words) or weight is None:
            continue
        n, d = weight.shape[0], weight[0].numel()
        r = 2 + len(updates) % 2
        up, down = torch.randn(n, r, generator=draw), torch.randn(r, d, generator=draw)
        updates[f"{component}.{name}"] = LayerUpdate(0.1 * up, down, 1.0 + len(updates) % 3)
        if weight.dim() > 2:
            shapes[f"{component}.{name}"] = ModuleShape(n, d, "conv", tuple(weight.shape[2:]))
    return PlainLora(updates, shapes, {}, PIPELINE)


def both() -> PlainLora:
    images = updates_of(unet(), "unet", WORDS)
    texts = updates_of(text_encoder(), "text_encoder", ("q_proj", "out_proj", "fc1"))
    return replace(images, updates={**images.updates, **texts.updates})


def pipeline() -> Any:
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=text_encoder(),
        tokenizer=None,
        unet=unet(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def outputs(pipe: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        hidden: Tensor = pipe.text_encoder.eval()(TOKENS).last_hidden_state
    return run(pipe.unet.eval()), hidden


def with_updates(lora: PlainLora) -> Any:
    """The pipeline with every update added to its weight."""
    pipe = pipeline()
    for module, update in lora.updates.items():
        component, _, path = module.partition(".")
        weight = getattr(pipe, component).get_submodule(path).weight
        weight.data += dense(update).reshape(weight.shape)
    return pipe


@pytest.mark.parametrize("to", ["kohya", "diffusers"])
def test_diffusers_loads_it_with_the_same_effect(to: str, tmp_path: Path) -> None:
    lora = both()
    (file,) = write_adapter(tmp_path / "ink", lora, to=to)
    pipe = pipeline()
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    plain, expected, found = outputs(pipeline()), outputs(with_updates(lora)), outputs(pipe)
    for before, meant, output in zip(plain, expected, found, strict=True):
        torch.testing.assert_close(output, meant, atol=2e-5, rtol=1e-4)
        assert (meant - before).norm() > 0.01 * before.norm()


def test_our_reader_gets_the_same_updates(tmp_path: Path) -> None:
    lora = both()
    (file,) = write_adapter(tmp_path / "ink", lora, ExportOptions(rank=5), to="kohya")
    assert file.name == "ink.safetensors"
    back = read_adapter(file)
    assert back.provenance.format == "kohya"
    assert back.name == "ink"
    assert set(back.ranks.values()) == {5}
    names = {
        m.replace("text_encoder.encoder", "text_encoder.text_model.encoder") for m in lora.updates
    }
    assert set(back.shapes) == names
    for module, update in lora.updates.items():
        name = module.replace("text_encoder.encoder", "text_encoder.text_model.encoder")
        torch.testing.assert_close(dense(back.layer(name)), dense(update))
        assert back.shapes[name].kernel == (
            lora.shapes[module].kernel if module in lora.shapes else ()
        )


def test_keys_and_header(tmp_path: Path) -> None:
    header = {"ss_network_dim": "64", "ss_seed": "7", "sshs_model_hash": "0123"}
    lora = replace(both(), config=PIPELINE | {"__metadata__": header})
    (file,) = write_adapter(tmp_path / "ink", lora, ExportOptions(dtype=torch.float16), to="kohya")
    found = load_file(file)
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert found[f"{key}.alpha"] == 3
    assert found[f"{key}.lora_down.weight"].dtype == torch.float16
    assert found["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"].shape[1] == 3
    assert found["lora_unet_mid_block_resnets_0_conv1.lora_down.weight"].dim() == 4
    with safe_open(file, framework="pt") as opened:
        said = opened.metadata()
    assert said["ss_network_dim"] == "3"
    assert said["ss_network_alpha"] == "3.0"
    assert said["ss_seed"] == "7"
    assert "sshs_model_hash" not in said


def test_two_text_encoders(tmp_path: Path) -> None:
    one = LayerUpdate(torch.ones(4, 1), torch.ones(1, 4))
    path = "text_model.encoder.layers.0.self_attn.q_proj"
    updates = {f"text_encoder.{path}": one, f"text_encoder_2.{path}": one}
    lora = PlainLora(updates, {}, {}, {"__components__": ["text_encoder", "text_encoder_2"]})
    (file,) = write_adapter(tmp_path / "x", lora, to="kohya")
    assert {key.split("_text")[0] for key in load_file(file)} == {"lora_te1", "lora_te2"}
    assert set(read_adapter(file).shapes) == set(updates)


def test_a_unet_of_peft_alone(tmp_path: Path) -> None:
    one = LayerUpdate(torch.ones(4, 1), torch.ones(1, 4))
    lora = PlainLora({"mid_block.attentions.0.proj_in": one}, {}, {}, {"peft_type": "LORA"})
    (file,) = write_adapter(tmp_path / "x", lora, to="kohya")
    assert list(read_adapter(file).shapes) == ["unet.mid_block.attentions.0.proj_in"]


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("transformer.transformer_blocks.0.attn.to_q", "component 'transformer' has no name"),
        ("text_encoder_3.encoder.block.0.layer.0", "component 'text_encoder_3' has no name"),
        ("unet.my_own_block.to_q", "is read as 'my.own.block.to_q'"),
    ],
)
def test_what_has_no_name(module: str, why: str, tmp_path: Path) -> None:
    one = LayerUpdate(torch.ones(4, 1), torch.ones(1, 4))
    lora = PlainLora({module: one}, {}, {}, PIPELINE)
    with pytest.raises(UnsupportedAdapterError, match=why):
        write_adapter(tmp_path / "x", lora, to="kohya")
    assert not list(tmp_path.iterdir())


def test_a_language_model_has_no_name(tmp_path: Path) -> None:
    lora = PlainLora(
        {"model.layers.0.q": LayerUpdate(torch.ones(4, 1), torch.ones(1, 4))}, {}, {}, {}
    )
    with pytest.raises(UnsupportedAdapterError, match="are no UNet's and no pipeline's"):
        write_adapter(tmp_path / "x", lora, to="kohya")


def test_kept_tensors(tmp_path: Path) -> None:
    embedding = torch.randn(2, 8)
    inversion = replace(both(), kept={"bundle_emb.word.string_to_param.*": embedding})
    (file,) = write_adapter(tmp_path / "a", inversion, to="kohya")
    assert torch.equal(load_file(file)["bundle_emb.word.string_to_param.*"], embedding)
    module = next(iter(inversion.updates))
    dora = replace(both(), kept={f"{module}.lora_magnitude_vector": torch.ones(2)})
    with pytest.raises(UnsupportedAdapterError, match="no name in kohya's form"):
        write_adapter(tmp_path / "b", dora, to="kohya")


def test_kohya_and_back(tmp_path: Path) -> None:
    """kohya -> Share model -> kohya."""
    lora = both()
    (first,) = write_adapter(tmp_path / "a", lora, to="kohya")
    share = Share.from_adapters({"a": first}, variance=1.0)
    (again,) = share.export("a", tmp_path / "b", to="kohya")
    before, after = read_adapter(first), read_adapter(again)
    assert set(before.shapes) == set(after.shapes)
    for module in before.shapes:
        torch.testing.assert_close(
            dense(after.layer(module)), dense(before.layer(module)), atol=1e-5, rtol=1e-4
        )


def test_a_real_adapter(tmp_path: Path) -> None:
    """Every sixth module of a public one, through a Share model."""
    original = read_adapter(public_adapters("stable-diffusion-v1-5")[0])
    few = list(original.shapes)[::6]
    adapter = Adapter.from_updates(
        original.name,
        {m: original.layer(m) for m in few},
        shapes={m: original.shapes[m] for m in few},
        config=original.config,
    )
    share = Share.from_adapters(adapter, k=4096, dtype=torch.float32)
    (file,) = share.export(original.name, tmp_path / "real", to="kohya")
    back = read_adapter(file)
    assert set(back.shapes) == set(few)
    for module in few:
        wanted = dense(original.layer(module)).float()
        assert (dense(back.layer(module)) - wanted).norm() < 1e-5 * wanted.norm()
    state, alphas = StableDiffusionPipeline.lora_state_dict(file.parent, weight_name=file.name)
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "theirs.safetensors")
    theirs = read_adapter(tmp_path / "theirs.safetensors")
    assert set(theirs.shapes) == set(few)
    assert set(alphas.values()) == {float(next(iter(back.ranks.values())))}
    for module in few:
        torch.testing.assert_close(dense(theirs.layer(module)), dense(back.layer(module)))
