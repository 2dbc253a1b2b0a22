"""Adapters saved by the real PEFT: read, written as plain LoRA, and loaded by PEFT again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from sharespace.formats import read_adapter
from sharespace.subspace.adapter import Adapter, ModuleShape
from support_formats import export, output_of, save_random, tiny

LINEAR = {"target_modules": ["first", "second"]}
FEATURES: dict[str, dict[str, Any]] = {
    "linear": {"r": 3, "lora_alpha": 7, **LINEAR},
    "Conv1D": {"r": 2, "target_modules": ["third"], "fan_in_fan_out": True},
    "conv2d": {"r": 2, "target_modules": ["image.conv"]},
    "conv1d": {"r": 2, "target_modules": ["line.conv"]},
    "grouped conv": {"r": 2, "lora_alpha": 3, "target_modules": ["grouped", "first"]},
    "embedding": {"r": 2, "lora_alpha": 5, "target_modules": ["embed", "first"]},
    "embedding, rsLoRA": {
        "r": 2,
        "lora_alpha": 5,
        "target_modules": ["embed", "first"],
        "use_rslora": True,
        "rank_pattern": {"first": 3},
    },
    "bias all": {"r": 2, "bias": "all", **LINEAR},
    "bias lora_only": {"r": 2, "bias": "lora_only", **LINEAR},
    "lora_bias": {"r": 2, "lora_alpha": 6, "lora_bias": True, **LINEAR},
    "DoRA": {"r": 2, "use_dora": True, "target_modules": ["first", "image.conv", "embed"]},
    "rsLoRA": {"r": 4, "use_rslora": True, **LINEAR},
    "patterns": {
        "r": 4,
        "target_modules": ["first", "second", "head"],
        "alpha_pattern": {"head": 3},
        "rank_pattern": {"^body.first": 2, r"body\.s.*": 5},
    },
    "heads": {"r": 2, "modules_to_save": ["head", "head"], **LINEAR},
    "trainable tokens": {"r": 2, "trainable_token_indices": {"embed": [1, 3]}, **LINEAR},
    "parameters": {
        "r": 2,
        "lora_alpha": 3,
        "target_parameters": ["experts.up", "experts.down"],
        "target_modules": ["first"],
        "rank_pattern": {"first": 4},
    },
    "parameters by their last names": {
        "r": 2,
        "lora_alpha": 3,
        "target_parameters": ["up", "down"],
        "target_modules": ["first", "second"],
    },
    "parameters, rsLoRA": {
        "r": 2,
        "lora_alpha": 3,
        "target_parameters": ["experts.up"],
        "target_modules": ["first"],
        "use_rslora": True,
    },
    "multi-head attention": {"r": 2, "target_modules": ["multi"], "rank_pattern": {"multi": 3}},
    "top-level module": {"r": 2, "target_modules": ["head"], "lora_alpha": 1},
    "gaussian": {"r": 2, "init_lora_weights": "gaussian", **LINEAR},
    "orthogonal": {"r": 2, "init_lora_weights": "orthogonal", "target_modules": ["first"]},
}


def factor_keys(adapter: Adapter) -> set[str]:
    return {f"base_model.model.{m}.lora_{f}.weight" for m in adapter.shapes for f in "AB"}


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
@pytest.mark.parametrize("feature", FEATURES)
def test_round_trip_keeps_the_forward(feature: str, tmp_path: Path) -> None:
    original = save_random(tmp_path / "original", **FEATURES[feature])
    adapter = read_adapter(original)
    export(adapter, tmp_path / "exported")
    torch.testing.assert_close(
        output_of(tmp_path / "exported"), output_of(original), atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize("feature", FEATURES)
def test_every_tensor_is_in_a_pair_or_kept(feature: str, tmp_path: Path) -> None:
    original = save_random(tmp_path / "original", **FEATURES[feature])
    adapter = read_adapter(original)
    export(adapter, tmp_path / "exported")
    before = load_file(original / "adapter_model.safetensors")
    after = load_file(tmp_path / "exported" / "adapter_model.safetensors")
    assert set(before) == set(after) == factor_keys(adapter) | set(adapter.kept)
    assert not factor_keys(adapter) & set(adapter.kept)
    for key in adapter.kept:
        assert torch.equal(adapter.kept[key], before[key])
        if not key.endswith("lora_B.bias"):
            assert torch.equal(after[key], before[key])


@pytest.mark.parametrize("feature", FEATURES)
def test_export_has_one_rank_and_scaling_one(feature: str, tmp_path: Path) -> None:
    adapter = read_adapter(save_random(tmp_path / "original", **FEATURES[feature]))
    export(adapter, tmp_path / "exported", rank=8)
    again = read_adapter(tmp_path / "exported")
    assert set(again.ranks.values()) == {8}
    assert {again.layer(module).scaling for module in again.shapes} == {1.0}
    assert again.shapes == adapter.shapes


def test_updates_are_the_weights_differences(tmp_path: Path) -> None:
    config = {"r": 3, "lora_alpha": 7, "target_modules": ["first", "image.conv"]}
    original = save_random(tmp_path / "a", **config)
    adapter = read_adapter(original)
    merged = peft.PeftModel.from_pretrained(tiny(), original).merge_and_unload()
    for module in adapter.shapes:
        update = adapter.layer(module)
        before, after = (m.state_dict()[f"{module}.weight"] for m in (tiny(), merged))
        delta = after - before
        found = update.scaling * update.up @ update.down
        torch.testing.assert_close(found, delta.reshape(found.shape), atol=1e-5, rtol=1e-4)


def test_shapes_and_ranks_come_from_the_tensors(tmp_path: Path) -> None:
    config = {"r": 2, "target_modules": ["first", "image.conv", "line.conv"]}
    adapter = read_adapter(save_random(tmp_path / "a", rank_pattern={"first": 3}, **config))
    assert adapter.ranks == {"body.first": 3, "image.conv": 2, "line.conv": 2}
    assert adapter.shapes == {
        "body.first": ModuleShape(6, 8),
        "image.conv": ModuleShape(4, 12, "conv", (3, 2)),
        "line.conv": ModuleShape(3, 6, "conv", (3,)),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_those_of_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    original = save_random(tmp_path / "a", r=2, lora_alpha=3, modules_to_save=["head"], **LINEAR)
    weights = original / "adapter_model.safetensors"
    save_file({k: v.to(dtype) for k, v in load_file(weights).items()}, weights)
    adapter = read_adapter(original)
    export(adapter, tmp_path / "b")
    update = read_adapter(tmp_path / "b").layer("body.first")
    assert adapter.dtype == update.up.dtype == update.down.dtype == dtype
    atol = 1e-5 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(output_of(tmp_path / "b"), output_of(original), atol=atol, rtol=0)


def test_mixed_dtypes_are_promoted(tmp_path: Path) -> None:
    original = save_random(tmp_path / "a", r=2, **LINEAR)
    weights = original / "adapter_model.safetensors"
    tensors = {k: v.half() if "first" in k else v for k, v in load_file(weights).items()}
    save_file(tensors, weights)
    adapter = read_adapter(original)
    assert adapter.dtype == torch.float32
    assert adapter.layer("body.first").up.dtype == torch.float16


def test_zero_b_is_read_as_zero(tmp_path: Path) -> None:
    original = save_random(tmp_path / "a", r=2, **LINEAR)
    weights = original / "adapter_model.safetensors"
    tensors = {k: v * ("lora_A" in k) for k, v in load_file(weights).items()}
    save_file(tensors, weights)
    assert not read_adapter(original).layer("body.first").up.any()


def test_unknown_config_fields_and_header_entries_are_handed_on(tmp_path: Path) -> None:
    original = save_random(tmp_path / "a", r=2, task_type="SEQ_CLS", **LINEAR)
    config = original / "adapter_config.json"
    fields = json.loads(config.read_text()) | {"of_the_future": [1], "lora_dropout": 0.25}
    config.write_text(json.dumps(fields))
    weights = original / "adapter_model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt", "mine": "kept"})
    export(read_adapter(original), tmp_path / "b")
    again = read_adapter(tmp_path / "b").config
    assert again["of_the_future"] == [1]
    assert again["lora_dropout"] == 0.25
    assert again["task_type"] == "SEQ_CLS"
    assert again["__metadata__"] == {"mine": "kept"}


def test_heads_saved_although_modules_to_save_is_null(tmp_path: Path) -> None:
    original = save_random(tmp_path / "a", r=2, modules_to_save=["head"], **LINEAR)
    config = original / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"modules_to_save": None}))
    adapter = read_adapter(original)
    assert set(adapter.kept) == {"base_model.model.head.weight", "base_model.model.head.bias"}


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
def test_converted_pissa_is_read(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, init_lora_weights="pissa", target_modules=["first"])
    model = peft.get_peft_model(tiny(), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = "pissa"
    model.save_pretrained(
        tmp_path / "a", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    assert read_adapter(tmp_path / "a").ranks == {"body.first": 4}


def test_one_adapter_name_in_the_keys_is_taken_out(tmp_path: Path) -> None:
    original = save_random(tmp_path / "a", r=2, use_dora=True, target_modules=["first"])
    weights = original / "adapter_model.safetensors"
    plain = read_adapter(original)
    renamed = {}
    for key, tensor in load_file(weights).items():
        for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
            key = key.replace(part, f"{part}.default")
        renamed[key] = tensor
    save_file(renamed, weights)
    adapter = read_adapter(original)
    assert adapter.shapes == plain.shapes
    assert list(adapter.kept) == list(plain.kept)


def test_keys_without_the_prefix_are_those_modules(tmp_path: Path) -> None:
    original = save_random(tmp_path / "a", r=2, modules_to_save=["head"], **LINEAR)
    plain = read_adapter(original)
    weights = original / "adapter_model.safetensors"
    tensors = {k.removeprefix("base_model.model."): v for k, v in load_file(weights).items()}
    save_file(tensors, weights)
    adapter = read_adapter(original)
    assert adapter.shapes == plain.shapes
    assert set(adapter.kept) == set(plain.kept)


@pytest.mark.parametrize("legacy", [False, True])
def test_bin_files(legacy: bool, tmp_path: Path) -> None:
    original = save_random(tmp_path / "a", r=2, modules_to_save=["head"], **LINEAR)
    expected = read_adapter(original)
    weights = original / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = "base_model.model.body.first.lora_B.weight"
    tensors[first] = tensors[first].T.contiguous().T
    torch.save(tensors, original / "adapter_model.bin", _use_new_zipfile_serialization=not legacy)
    weights.unlink()
    adapter = read_adapter(original)
    assert adapter.shapes == expected.shapes
    for module in adapter.shapes:
        assert torch.equal(adapter.layer(module).up, tensors[_key(module, "B")])
        assert torch.equal(adapter.layer(module).down, tensors[_key(module, "A")])
    for key in adapter.kept:
        assert torch.equal(adapter.kept[key], tensors[key])


def _key(module: str, factor: str) -> str:
    return f"base_model.model.{module}.lora_{factor}.weight"
