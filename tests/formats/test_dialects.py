"""Adapters in the ways that other tools write them."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sharespace import Share
from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.formats import read_adapter
from support_formats import TOKENS, output_of, save_random, tiny

PREFIX = "base_model.model."


def _peft(folder: Path, tensors: dict[str, Tensor], **config: object) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(fields | config))
    return folder


@pytest.mark.parametrize("shared", [True, False])
def test_stacked_experts_are_kept_and_attention_is_shared(shared: bool, tmp_path: Path) -> None:
    attention, experts = "layers.0.self_attn.q_proj", "layers.0.mlp.experts.w1"
    kept = {
        f"{PREFIX}{experts}.lora_A.weight": torch.randn(1 if shared else 8, 4, 32),
        f"{PREFIX}{experts}.lora_B.weight": torch.randn(8, 16, 4),
    }
    pair = {
        f"{PREFIX}{attention}.lora_A.weight": torch.randn(4, 32),
        f"{PREFIX}{attention}.lora_B.weight": torch.randn(32, 4),
    }
    share = Share.from_adapters(_peft(tmp_path / "a", kept | pair), k=4)
    assert list(share.model.layers) == [attention]
    written = load_file(share.export("a", tmp_path / "out")[0] / "adapter_model.safetensors")
    assert all(torch.equal(written[key], tensor) for key, tensor in kept.items())


def test_an_update_of_zeros_is_exported_as_zeros(tmp_path: Path) -> None:
    folder = save_random(tmp_path / "a", r=2, target_modules=["first", "second"])
    path = folder / "adapter_model.safetensors"
    tensors = {k: v * (0 if "lora_B" in k else 1) for k, v in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    share = Share.from_adapters(folder, variance=1.0)
    written = share.export("a", tmp_path / "out")[0]
    tokens = torch.arange(16).reshape(4, 4) % 9
    with torch.no_grad():
        assert torch.equal(output_of(written), tiny()(tokens))
    assert read_adapter(written).ranks == {"body.first": 1, "body.second": 1}


def _mlx(folder: Path, tensors: dict[str, Tensor], **config: object) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors")
    save_file(tensors, folder / "0000100_adapters.safetensors")
    parameters = {"rank": 4, "scale": 20.0, "dropout": 0.0}
    fields = {"fine_tune_type": "lora", "model": "mlx-community/X", "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(fields | config))
    return folder


def test_an_adapter_of_mlx_lm(tmp_path: Path) -> None:
    module = "model.layers.0.self_attn.q_proj"
    down, up = torch.randn(32, 4), torch.randn(4, 16)
    adapter = read_adapter(_mlx(tmp_path / "m", {f"{module}.lora_a": down, f"{module}.lora_b": up}))
    update = adapter.layer(module)
    torch.testing.assert_close(update.scaling * update.up @ update.down, 20 * (down @ up).mT)
    assert adapter.base.id == "mlx-community/X"
    assert adapter.name == "m"
    share = Share.from_adapters([adapter], variance=1.0)
    read = read_adapter(share.export("m", tmp_path / "out")[0])
    again = read.layer(module)
    torch.testing.assert_close(again.up @ again.down, 20 * (down @ up).mT, rtol=1e-3, atol=1e-3)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert "lora_parameters" not in config


@pytest.mark.parametrize("kind", ["dora", "full"])
def test_other_adapters_of_mlx_lm_are_named(kind: str, tmp_path: Path) -> None:
    tensors = {"layers.0.q.lora_a": torch.ones(6, 4), "layers.0.q.lora_b": torch.ones(4, 6)}
    with pytest.raises(UnsupportedAdapterError, match=f"mlx-lm.*{kind}"):
        read_adapter(_mlx(tmp_path / "m", tensors, fine_tune_type=kind))


@pytest.mark.parametrize(
    ("targets", "kept"),
    [
        (r".*language_model.*\.q_proj", True),
        (["q_proj", "v_proj"], True),
        ("all-linear", False),
        (r"(?<=x).*q_proj", False),
        (["v_proj"], False),
    ],
)
def test_targets_of_a_multimodal_model_stay(targets: object, kept: bool, tmp_path: Path) -> None:
    """Full paths of transformers 4 name no module of transformers 5, where PEFT maps the keys."""
    module = "language_model.model.layers.0.self_attn.q_proj"
    pair = {
        f"{PREFIX}{module}.lora_A.weight": torch.randn(4, 32),
        f"{PREFIX}{module}.lora_B.weight": torch.randn(32, 4),
    }
    share = Share.from_adapters(_peft(tmp_path / "a", pair, target_modules=targets), k=4)
    written = share.export("a", tmp_path / "out")[0]
    fields = json.loads((written / "adapter_config.json").read_text())
    assert fields["target_modules"] == (targets if kept else [module])


def test_a_sharded_file_is_read_whole(tmp_path: Path) -> None:
    folder = save_random(tmp_path / "a", r=2, lora_alpha=3, target_modules=["first", "second"])
    output = output_of(folder)
    whole = folder / "adapter_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    places = {}
    for i, key in enumerate(sorted(tensors)):
        places[key] = f"adapter_model-0000{i % 2 + 1}-of-00002.safetensors"
        save_file({k: tensors[k] for k in places if places[k] == places[key]}, folder / places[key])
    index = folder / "adapter_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    share = Share.from_adapters(folder, variance=1.0)
    written = share.export("a", tmp_path / "out")[0]
    torch.testing.assert_close(output_of(written), output, rtol=1e-4, atol=1e-5)
    (folder / "adapter_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CorruptAdapterError, match="00002-of-00002"):
        read_adapter(folder)
    index.write_text(json.dumps({"weight_map": {"k": "../elsewhere.safetensors"}}))
    with pytest.raises(CorruptAdapterError, match="elsewhere"):
        read_adapter(folder)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(("init", "folder"), [("pissa", "pissa_init"), ("olora", "olora_init")])
def test_an_adapter_whose_start_changed_the_base(
    init: str, folder: str, beside: bool, tmp_path: Path
) -> None:
    """With the factors that it began from it is an update of the base as it is published."""
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["first", "second"], init_lora_weights=init
    )
    model = peft.get_peft_model(tiny(), config).eval()
    trained = tmp_path / "trained"
    start = tmp_path / folder if beside else trained / folder
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(start)
    model.peft_config["default"].init_lora_weights = init
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter += 0.3 * torch.randn_like(parameter)
        output = model(TOKENS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(trained)
    share = Share.from_adapters(trained, variance=1.0)
    written = share.export("trained", tmp_path / "out")[0]
    torch.testing.assert_close(output_of(written), output, rtol=1e-3, atol=1e-4)
    shutil.rmtree(start)
    with pytest.raises(UnsupportedAdapterError, match="initial adapter beside it"):
        read_adapter(trained)
