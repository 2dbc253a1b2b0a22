"""What can't be kept exactly is refused by name, and broken configs say what is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.formats import read_adapter

PREFIX = "base_model.model."


def pair(module: str = "a.b", r: int = 2, prefix: str = PREFIX) -> dict[str, Tensor]:
    return {
        f"{prefix}{module}.lora_A.weight": torch.ones(r, 5),
        f"{prefix}{module}.lora_B.weight": torch.ones(4, r),
    }


def write(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"peft_type": "ADALORA"}, "ADALORA"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"use_qalora": True}, "use_qalora"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"kasa_config": {"beta": 0.1}}, "kasa_config"),
        ({"monteclora_config": {"a": 1}}, "monteclora_config"),
        ({"arrow_config": {"top_k": 1}}, "arrow_config"),
    ],
)
def test_configs_of_other_updates(config: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError, match=named):
        read_adapter(write(tmp_path / "x", pair(), **config))


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_initialisations_that_leave_the_base_are_read(init: object, tmp_path: Path) -> None:
    assert read_adapter(write(tmp_path / "x", pair(), init_lora_weights=init)).ranks == {"a.b": 2}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"peft_type": None}, "no peft_type"),
        ({"r": 4}, "rank 4 for module 'a.b', whose tensors have rank 2"),
        ({"r": 0}, "rank r is 0"),
        ({"r": "2"}, "rank r is '2'"),
        ({"r": True}, "rank r is True"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": "4"}, "lora_alpha is '4'"),
        ({"rank_pattern": {"b": 3}}, "rank 3"),
        ({"rank_pattern": ["b"]}, "rank_pattern"),
        ({"rank_pattern": {"(": 2}}, "regular expression"),
        ({"alpha_pattern": {"b": "x"}}, "alpha b is 'x'"),
        ({"target_parameters": "a.b"}, "target_parameters"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path"),
        ({"revision": []}, "revision"),
        ({"lora_alpha": 10**400}, "alpha"),
    ],
)
def test_configs_with_unusable_values(config: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptAdapterError) as caught:
        read_adapter(write(tmp_path / "x", pair(), **config))
    assert named in str(caught.value)
    assert "adapter_config.json" in str(caught.value) or "adapter_model" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds a list"),
        ('{"r": 1, "r": 2}', "'r' is written twice"),
        ('{"peft_type": "LORA", "lora_alpha": NaN}', "NaN"),
        ("\udcff", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("9" * 10_000, "not valid JSON"),
    ],
)
def test_configs_that_are_no_json(text: str, named: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x", pair())
    (path / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CorruptAdapterError, match=named):
        read_adapter(path)


def test_missing_config(tmp_path: Path) -> None:
    path = write(tmp_path / "x", pair())
    (path / "adapter_config.json").unlink()
    with pytest.raises(CorruptAdapterError, match="missing"):
        read_adapter(path)


def test_missing_weights_names_the_folders_that_have_some(tmp_path: Path) -> None:
    write(tmp_path / "below", pair())
    with pytest.raises(CorruptAdapterError, match="below"):
        read_adapter(tmp_path)


def test_several_candidates(tmp_path: Path) -> None:
    for name in ("x", "y"):
        save_file(pair(), tmp_path / f"{name}.safetensors")
    with pytest.raises(CorruptAdapterError, match=r"x\.safetensors, y\.safetensors"):
        read_adapter(tmp_path)


def test_two_standard_names_are_several_candidates(tmp_path: Path) -> None:
    save_file(pair(), write(tmp_path / "x", pair()) / "pytorch_lora_weights.safetensors")
    with pytest.raises(CorruptAdapterError, match="several"):
        read_adapter(tmp_path / "x")


@pytest.mark.parametrize("path", ["missing", "a\0b", "x" * 5000])
def test_paths_that_are_not_there(path: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptAdapterError):
        read_adapter(f"{tmp_path}/{path}")


def test_several_adapters_in_one_file(tmp_path: Path) -> None:
    tensors = {f"{PREFIX}m.lora_A.{name}.weight": torch.ones(2, 2) for name in ("one", "two")}
    with pytest.raises(UnsupportedAdapterError, match="one, two"):
        read_adapter(write(tmp_path / "x", tensors))


def test_a_factor_without_its_partner(tmp_path: Path) -> None:
    tensors = pair()
    del tensors[f"{PREFIX}a.b.lora_B.weight"]
    with pytest.raises(UnsupportedAdapterError, match=r"'a\.b' has only one factor"):
        read_adapter(write(tmp_path / "x", tensors))


def test_targets_that_match_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {f"{PREFIX}head.weight": torch.ones(2, 2)})
    with pytest.raises(CorruptAdapterError, match="no module has a pair"):
        read_adapter(path)


def test_only_what_is_kept_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "x", pair("m.experts"), target_parameters=["experts.up"])
    with pytest.raises(UnsupportedAdapterError, match="embeddings and experts"):
        read_adapter(path)


def test_no_tensor_at_all(tmp_path: Path) -> None:
    with pytest.raises(CorruptAdapterError, match="none at all"):
        read_adapter(write(tmp_path / "x", {}))


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("lora_mid.weight", "LoCon"),
        ("dora_scale", "DoRA"),
        ("diff", "full-rank"),
        ("diff_b", "full-rank"),
        ("oft_blocks", "OFT"),
        ("lora_up.bias", "bias of a factor"),
        ("scalar", "not known"),
    ],
)
def test_kohya_updates_that_are_not_b_a(key: str, named: str, tmp_path: Path) -> None:
    flat = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {
        f"{flat}.lora_down.weight": torch.ones(2, 4),
        f"{flat}.lora_up.weight": torch.ones(4, 2),
        f"{flat}.{key}": torch.ones(2),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedAdapterError, match=named):
        read_adapter(tmp_path / "x.safetensors")
