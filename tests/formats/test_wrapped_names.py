"""Adapters that were saved from a wrapped model have the names of the bare model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sharespace import Share
from sharespace.errors import CorruptAdapterError
from sharespace.formats import read_adapter
from support_formats import output_of, save_random

PREFIX = "base_model.model."
CONFIG = {"r": 2, "lora_alpha": 3, "target_modules": ["first", "second"]}
WRAPPERS: dict[str, Callable[[str], str]] = {
    "compiled": lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "compiled after PEFT": lambda key: f"_orig_mod.{key}",
    "DDP": lambda key: f"module.{key}",
    "DDP before PEFT": lambda key: key.replace(PREFIX, f"{PREFIX}module."),
    "FSDP": lambda key: f"_fsdp_wrapped_module.{key}",
    "blocks of FSDP": lambda key: key.replace("body.", "body._fsdp_wrapped_module."),
    "checkpointing": lambda key: key.replace("body.", "body._checkpoint_wrapped_module."),
    "regional compilation": lambda key: key.replace(".lora_", "._orig_mod.lora_"),
    "nested": lambda key: f"module._orig_mod.{key}".replace(
        "body.", "body._fsdp_wrapped_module._checkpoint_wrapped_module."
    ),
}


def _rewrite(folder: Path, rename: Callable[[str], str]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({rename(k): v for k, v in load_file(path).items()}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("rename", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_it_shares_its_layers_with_the_others_and_peft_loads_its_export(
    rename: Callable[[str], str], tmp_path: Path
) -> None:
    plain = save_random(tmp_path / "plain", **CONFIG, modules_to_save=["head"])
    output = output_of(plain)
    wrapped = save_random(tmp_path / "wrapped", **CONFIG, modules_to_save=["head"])
    _rewrite(wrapped, rename)
    share = Share.from_adapters([plain, wrapped], variance=1.0)
    assert list(share.model.layers) == ["body.first", "body.second"]
    assert share.task("wrapped").kept.keys() == share.task("plain").kept.keys()
    torch.testing.assert_close(
        output_of(share.export("wrapped", tmp_path / "out")[0]), output, rtol=1e-4, atol=1e-5
    )


def test_patterns_for_wrapped_names_are_those_of_the_bare_ones(tmp_path: Path) -> None:
    folder = save_random(tmp_path / "a", **CONFIG, rank_pattern={"body.first": 3})
    _rewrite(folder, WRAPPERS["compiled"])
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text())
    fields["rank_pattern"] = {r"^_orig_mod\.body.first": 3}
    path.write_text(json.dumps(fields))
    assert read_adapter(folder).ranks == {"body.first": 3, "body.second": 2}


def test_a_tensor_with_and_without_a_wrapper_is_refused(tmp_path: Path) -> None:
    folder = save_random(tmp_path / "a", **CONFIG)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    both = {f"_orig_mod.{k}": v.clone() for k, v in tensors.items()}
    save_file(tensors | both, path, metadata={"format": "pt"})
    with pytest.raises(CorruptAdapterError, match=r"are the same tensor's"):
        read_adapter(folder)


def test_a_pipeline_whose_unet_was_compiled(tmp_path: Path) -> None:
    to_q = "down_blocks.0.attentions.0.to_q"
    pair = {"A": torch.ones(2, 4), "B": torch.ones(4, 2)}
    keys = {f"unet._orig_mod.{to_q}.lora_{f}.weight": t for f, t in pair.items()}
    save_file(keys, tmp_path / "pytorch_lora_weights.safetensors")
    assert list(read_adapter(tmp_path).shapes) == [f"unet.{to_q}"]
    flat = f"lora_unet__orig_mod_{to_q.replace('.', '_')}"
    words = {"A": "lora_down", "B": "lora_up"}
    save_file({f"{flat}.{words[f]}.weight": t for f, t in pair.items()}, tmp_path / "k.safetensors")
    assert list(read_adapter(tmp_path / "k.safetensors").shapes) == [f"unet.{to_q}"]
