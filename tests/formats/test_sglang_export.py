"""A folder for SGLang: what its loader does to it leaves our updates.

``Loaded`` is a statement of that loader's rules (SGLang 0.5.23, ``python/sglang/srt/lora``:
``lora_config.py``, ``LoRAAdapter._process_weight`` and ``_normalize_weights``, ``mem_pool.py``);
``make sglang`` runs the loader's own code on the same folder (``hosts/sglang_load.py``).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from sharespace.errors import OptionError, UnsupportedAdapterError
from sharespace.formats import ExportOptions, PlainLora, write_adapter
from sharespace.subspace.adapter import BaseModel, LayerUpdate, ModuleShape
from support_export import (
    EVERYTHING,
    changed,
    dense,
    llama,
    logits,
    lora_of,
    saved_config,
    weight_of,
)

STACKS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
SINGLE = ("o_proj", "down_proj")


def write(lora: PlainLora, folder: Path, **options: Any) -> Path:
    assert write_adapter(folder, lora, ExportOptions(**options), to="sglang") == [folder]
    return folder


class Loaded:
    """What SGLang has of a folder: (layer, buffer) -> A and B, stacked, and the head's."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["peft_type"].lower() == "lora"
        assert isinstance(config["target_modules"], list)
        assert not config.get("use_dora")
        self.r = config["r"]
        self.scaling = config["lora_alpha"] / config["r"]
        words = {name.split(".")[-1] for name in config["target_modules"]}
        self.buffers: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self.layers: dict[int, dict[str, Tensor]] = {}
        self.head: dict[str, Tensor] = {}
        for key, tensor in load_file(folder / "adapter_model.safetensors").items():
            layer = re.search(r"layers\.(\d+)\.", key)
            word, factor = re.search(r"(\w+)\.lora_([AB])\.weight", key).groups()  # type: ignore[union-attr]
            if layer:
                here = self.layers.setdefault(int(layer[1]), {})
                assert word + factor not in here, "one would overwrite the other"
                here[word + factor] = tensor
            elif word == "lm_head" and word in words:
                self.head[factor] = tensor
            else:
                raise AssertionError(f"{key} is left out")
        for number, here in self.layers.items():
            self._stack(number, here)

    def _stack(self, number: int, here: dict[str, Tensor]) -> None:
        for name, words in STACKS.items():
            if any(w + "A" in here for w in words):
                # KeyError here is KeyError there.
                pair = [torch.cat([here.pop(w + f) for w in words], 0) for f in "AB"]
                assert pair[0].shape[0] == len(words) * self.r, "the buffer's shape"
                self.buffers[number, name] = pair[0], pair[1]
        for word in SINGLE:
            if word + "A" in here:
                self.buffers[number, word] = here.pop(word + "A"), here.pop(word + "B")
        assert not here, "no buffer for these: the server stops"

    def updates(self, sizes: dict[str, int]) -> dict[str, Tensor]:
        """``layer.word`` -> dense update, zeros left out."""
        found = {}
        for (number, name), (a, b) in self.buffers.items():
            words = STACKS.get(name, (name,))
            rows = torch.split(b, [sizes[w] for w in words])
            for word, down, up in zip(words, a.chunk(len(words)), rows, strict=True):
                found[f"{number}.{word}"] = self.scaling * up @ down
        return {name: update for name, update in found.items() if update.any()}


SIZES = {
    word: weight_of(llama(), f"model.layers.0.{where}.{word}").shape[0]
    for where, words in {
        "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "mlp": ("gate_proj", "up_proj", "down_proj"),
    }.items()
    for word in words
}


def assert_same(lora: PlainLora, found: dict[str, Tensor]) -> None:
    wanted = {
        ".".join((m.split(".")[2], m.split(".")[-1])): dense(u) for m, u in lora.updates.items()
    }
    assert set(found) == set(wanted)
    for name, update in found.items():
        torch.testing.assert_close(update, wanted[name])


@pytest.mark.parametrize(
    "words",
    [
        EVERYTHING,
        ("q_proj", "v_proj"),
        ("q_proj", "k_proj"),
        ("k_proj", "v_proj", "up_proj"),
        ("gate_proj", "o_proj"),
        ("down_proj",),
    ],
)
def test_the_loaders_rules_leave_our_updates(words: tuple[str, ...], tmp_path: Path) -> None:
    base = saved_config(llama(), tmp_path / "base")
    lora = lora_of(llama(), words)
    folder = write(lora, tmp_path / "x", base=str(base), rank=6)
    assert_same(lora, Loaded(folder).updates(SIZES))


EVERY = lora_of(llama())
SHAPES = {m: ModuleShape(u.up.shape[0], u.down.shape[1]) for m, u in EVERY.updates.items()}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(modules=st.sets(st.sampled_from(sorted(EVERY.updates)), min_size=1))
def test_any_modules_are_stacked_rightly(modules: set[str], tmp_path: Path) -> None:
    lora = replace(EVERY, updates={m: EVERY.updates[m] for m in modules}, shapes=SHAPES)
    folder = write(lora, tmp_path / "x", overwrite=True)
    assert_same(lora, Loaded(folder).updates(SIZES))


def test_scaling_is_in_the_factors(tmp_path: Path) -> None:
    config = {"r": 2, "lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"q_proj": 3}}
    lora = replace(lora_of(llama()), config={"peft_type": "LORA"} | config)
    folder = write(lora, tmp_path / "x")
    assert Loaded(folder).scaling == 1
    assert_same(lora, Loaded(folder).updates(SIZES))


def test_peft_gives_the_same_model(tmp_path: Path) -> None:
    lora = lora_of(llama(), ("q_proj", "v_proj", "up_proj", "lm_head"))
    loaded = PeftModel.from_pretrained(llama(), write(lora, tmp_path / "x")).eval()
    torch.testing.assert_close(logits(loaded), logits(changed(llama(), lora)))


def test_a_head_alone_is_a_list(tmp_path: Path) -> None:
    lora = lora_of(llama(), ("lm_head",))
    found = Loaded(write(lora, tmp_path / "x"))
    torch.testing.assert_close(found.head["B"] @ found.head["A"], dense(lora.updates["lm_head"]))


def test_sizes_from_other_layers(tmp_path: Path) -> None:
    """k is as v in its layer; else as in another, where another task adapted it."""
    lora = lora_of(llama(), ("q_proj",))
    shapes = {"model.layers.1.self_attn.v_proj": ModuleShape(16, 32)}
    folder = write(replace(lora, shapes=shapes), tmp_path / "x")
    assert_same(lora, Loaded(folder).updates(SIZES))


def test_a_size_that_nobody_knows(tmp_path: Path) -> None:
    lora = replace(lora_of(llama(), ("q_proj",)), base=BaseModel())
    with pytest.raises(OptionError, match=r"k_proj: SGLang needs factors of it.*--base"):
        write(lora, tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "modules",
    [
        ["transformer.h.0.attn.c_attn"],
        ["bert.encoder.layer.0.attention.self.query"],
        ["model.layers.0.mlp.experts.3.up_proj"],
        ["model.layers.0.block_sparse_moe.gate"],
    ],
)
def test_modules_without_a_place(modules: list[str], tmp_path: Path) -> None:
    updates = {m: LayerUpdate(torch.ones(4, 1), torch.ones(1, 4)) for m in modules}
    with pytest.raises(UnsupportedAdapterError, match="SGLang has no place for it"):
        write(PlainLora(updates, {}, {}, {}), tmp_path / "x")


def test_two_modules_that_sglang_takes_for_one(tmp_path: Path) -> None:
    one = LayerUpdate(torch.ones(4, 1), torch.ones(1, 4))
    paths = ("language_model.layers.0.self_attn.o_proj", "vision_tower.layers.0.self_attn.o_proj")
    with pytest.raises(UnsupportedAdapterError, match="for one module"):
        write(PlainLora(dict.fromkeys(paths, one), {}, {}, {}), tmp_path / "x")


def test_sglangs_own_loader(tmp_path: Path) -> None:
    """Where SGLang's files are named: ``make sglang`` does."""
    files = os.environ.get("SHARESPACE_SGLANG")
    if not files:
        pytest.skip("no files of SGLang named: make sglang")
    script = Path(__file__).parents[1] / "serve" / "hosts" / "sglang_load.py"
    base = saved_config(llama(), tmp_path / "base")
    for at, words in enumerate([EVERYTHING, ("q_proj", "up_proj"), ("k_proj", "lm_head")]):
        lora = lora_of(llama(), words)
        folder = write(lora, tmp_path / f"x{at}", base=str(base))
        out = tmp_path / f"seen{at}"
        subprocess.run([sys.executable, script, files, folder, base, out], check=True)
        ours, theirs = Loaded(folder), load_file(out)
        expected = {f"{n}.{name}.{f}" for n, name in ours.buffers for f in "AB"}
        expected |= {f"head.{f}" for f in ours.head}
        assert set(theirs) == expected
        for (number, name), pair in ours.buffers.items():
            for factor, tensor in zip("AB", pair, strict=True):
                assert torch.equal(theirs[f"{number}.{name}.{factor}"], tensor)
        for factor, tensor in ours.head.items():
            assert torch.equal(theirs[f"head.{factor}"], tensor)
