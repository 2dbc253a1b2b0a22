"""GGUF for llama.cpp: read back by the gguf package, rows put back in order, it is our update.

Real inference by llama.cpp is in ``make llama`` (``hosts/llama_suite.py``).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shared_data import public_adapters
from sharespace import Share, read_adapter
from sharespace.errors import (
    AdapterError,
    CorruptAdapterError,
    MismatchError,
    OptionError,
    UnsupportedAdapterError,
)
from sharespace.formats import ExportOptions, PlainLora, write_adapter
from sharespace.formats.engines import BaseConfig
from sharespace.formats.gguf import ARCHITECTURES, LlamaCppNames, pair_order
from sharespace.subspace.adapter import BaseModel, LayerUpdate
from support_export import changed, dense, llama, logits, lora_of, saved_config

WORDS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEADS = {"q_proj": 4, "k_proj": 2}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved_config(llama(), tmp_path / "base")


def write(lora: PlainLora, folder: Path, base: Path, **options: Any) -> Path:
    (file,) = write_adapter(folder, lora, ExportOptions(base=str(base), **options), to="gguf")
    assert file == folder / f"{folder.name}.gguf"
    return file


def tensors(file: Path) -> dict[str, Tensor]:
    """As float32, rows first."""
    found = {}
    for t in gguf.GGUFReader(file).tensors:
        data = gguf.quants.dequantize(t.data, t.tensor_type)
        found[t.name] = torch.from_numpy(np.array(data, dtype=np.float32))
        assert list(found[t.name].shape) == [int(n) for n in reversed(t.shape)]
    return found


def ggml_name(module: str) -> str:
    """model.layers.1.self_attn.q_proj -> blk.1.attn_q.weight"""
    _, _, layer, path = module.split(".", 3)
    return f"blk.{layer}.{WORDS[path]}.weight"


def halves(rows: Tensor, heads: int) -> Tensor:
    """Rows of pairs (x0, y0, x1, y1 ...) as transformers has them: x0 x1 ... y0 y1 ..."""
    found = []
    for head in rows.chunk(heads):
        found += [head[0::2], head[1::2]]
    return torch.cat(found)


def test_the_updates_come_back(base: Path, tmp_path: Path) -> None:
    lora = lora_of(llama())
    found = tensors(write(lora, tmp_path / "ink", base))
    assert set(found) == {f"{ggml_name(m)}.lora_{x}" for m in lora.updates for x in "ab"}
    for module, update in lora.updates.items():
        a, b = (found[f"{ggml_name(module)}.lora_{x}"] for x in "ab")
        assert a.shape == (4, update.down.shape[1])
        heads = HEADS.get(module.rpartition(".")[2])
        b = halves(b, heads) if heads else b
        torch.testing.assert_close(b @ a, dense(update))


def test_metadata(base: Path, tmp_path: Path) -> None:
    fields = gguf.GGUFReader(write(lora_of(llama()), tmp_path / "ink", base, rank=6)).fields
    said = {name: field.contents() for name, field in fields.items()}
    assert said["general.type"] == "adapter"
    assert said["general.architecture"] == "llama"
    assert said["adapter.type"] == "lora"
    assert said["adapter.lora.alpha"] == 6
    assert said["general.name"] == "ink"


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "F32"), (torch.float16, "F16"), (torch.bfloat16, "BF16")],
)
def test_dtypes(dtype: torch.dtype, name: str, base: Path, tmp_path: Path) -> None:
    lora = lora_of(llama(), ["o_proj"])
    file = write(lora, tmp_path / "ink", base, dtype=dtype)
    assert {t.tensor_type.name for t in gguf.GGUFReader(file).tensors} == {name}
    found = tensors(file)
    for module, update in lora.updates.items():
        a = found[f"{ggml_name(module)}.lora_a"]
        rank = update.down.shape[0]
        assert torch.equal(a[:rank], update.down.to(dtype).float())
        assert not a[rank:].any()


def test_pairs_are_the_order_of_llama_cpp() -> None:
    assert pair_order(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@given(heads=st.integers(1, 6), half=st.integers(1, 8))
def test_pairs_and_halves_are_inverse(heads: int, half: int) -> None:
    rows = torch.arange(2 * heads * half)[:, None]
    assert torch.equal(halves(rows[pair_order(len(rows), heads)], heads), rows)


@pytest.mark.parametrize(
    ("model_type", "module", "name"),
    [
        ("llama", "lm_head", "output.weight"),
        ("qwen2", "model.layers.1.self_attn.k_proj", "blk.1.attn_k.weight"),
        ("phi3", "model.layers.0.self_attn.qkv_proj", "blk.0.attn_qkv.weight"),
        ("phi3", "model.layers.0.mlp.gate_up_proj", "blk.0.ffn_up.weight"),
        ("gpt2", "transformer.h.1.attn.c_attn", "blk.1.attn_qkv.weight"),
        ("gpt2", "transformer.h.1.mlp.c_proj", "blk.1.ffn_down.weight"),
    ],
)
def test_names(model_type: str, module: str, name: str) -> None:
    config = BaseConfig("x", {"model_type": model_type, "num_hidden_layers": 2})
    assert LlamaCppNames(config).of(module) == name


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_every_architecture_is_known_to_the_package(model_type: str) -> None:
    config = BaseConfig("x", {"model_type": model_type, "n_layer": 1})
    module = "transformer.h.0.mlp.c_fc" if model_type == "gpt2" else "model.layers.0.mlp.down_proj"
    assert LlamaCppNames(config).of(module).startswith("blk.0.ffn_")


@pytest.mark.parametrize("stated", [True, None])
def test_a_tied_head_is_refused(stated: bool | None) -> None:
    fields = {"model_type": "smollm3", "num_hidden_layers": 2}
    names = LlamaCppNames(BaseConfig("x", fields | {"tie_word_embeddings": stated}))
    with pytest.raises(UnsupportedAdapterError, match="token embedding"):
        names.of("lm_head")


def test_refusals(base: Path, tmp_path: Path) -> None:
    lora = lora_of(llama(), ["q_proj"])

    def refused(error: type, why: str, lora: PlainLora = lora, **options: Any) -> None:
        with pytest.raises(error, match=why):
            write_adapter(tmp_path / "x", lora, ExportOptions(**options), to="gguf")
        assert not (tmp_path / "x").exists()

    at = str(base)
    refused(OptionError, "does not state its base", replace(lora, base=BaseModel()))
    refused(OptionError, "float64.*Give one of", base=at, dtype=torch.float64)
    refused(AdapterError, "config.json cannot be read", base=str(tmp_path))
    other = {"model.layers.9.self_attn.q_proj": next(iter(lora.updates.values()))}
    refused(UnsupportedAdapterError, "no such module", replace(lora, updates=other), base=at)
    odd = {next(iter(lora.updates)): LayerUpdate(torch.ones(12, 1), torch.ones(1, 32))}
    refused(MismatchError, "12 outputs are not 4 heads", replace(lora, updates=odd), base=at)
    down = torch.ones(1, 32)
    broken = {next(iter(lora.updates)): LayerUpdate(torch.full((32, 1), 1e5), down)}
    too_large = replace(lora, updates=broken)
    refused(OptionError, "too large for float16", too_large, base=at, dtype=torch.float16)
    broken = {next(iter(lora.updates)): LayerUpdate(torch.full((32, 1), torch.inf), down)}
    refused(CorruptAdapterError, "NaN or infinity", replace(lora, updates=broken), base=at)


def test_an_architecture_without_a_form(base: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(UnsupportedAdapterError, match="'bert' has no GGUF form"):
        write_adapter(tmp_path / "x", lora_of(llama()), ExportOptions(base=str(base)), to="gguf")


def test_the_base_that_the_task_states(base: Path, tmp_path: Path) -> None:
    lora = replace(lora_of(llama()), base=BaseModel(str(base)))
    assert write_adapter(tmp_path / "x", lora, to="gguf") == [tmp_path / "x" / "x.gguf"]


def test_a_package_that_is_missing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"sharespace\[gguf\]"):
        write_adapter(tmp_path / "x", lora_of(llama()), ExportOptions(base=str(base)), to="gguf")


def test_a_real_adapter(tmp_path: Path) -> None:
    """GPT-2's Conv1D: n x d here as in GGUF, so nothing is transposed."""
    original = read_adapter(public_adapters("gpt2")[0])
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "gpt2", "n_layer": 12, "n_head": 12}')
    share = Share.from_adapters(original, k=4096, dtype=torch.float32)
    (file,) = share.export(original.name, tmp_path / "real", to="gguf", base=str(base))
    found = tensors(file)
    assert len(found) == 2 * len(original.shapes)
    names = LlamaCppNames(BaseConfig("gpt2", {"model_type": "gpt2", "n_layer": 12}))
    for module in list(original.shapes)[::6]:
        name = names.of(module)
        product = found[f"{name}.lora_b"] @ found[f"{name}.lora_a"]
        wanted = dense(original.layer(module)).float()
        assert (product - wanted).norm() < 1e-5 * wanted.norm()


def test_the_product_is_what_the_model_needs(base: Path, tmp_path: Path) -> None:
    """The file's own numbers, put into the weights, give the logits of the task."""
    lora = lora_of(llama())
    found = tensors(write(lora, tmp_path / "ink", base))

    def theirs(module: str) -> Tensor:
        a, b = (found[f"{ggml_name(module)}.lora_{x}"] for x in "ab")
        heads = HEADS.get(module.rpartition(".")[2])
        return (halves(b, heads) if heads else b) @ a

    expected = logits(changed(llama(), lora))
    torch.testing.assert_close(logits(changed(llama(), lora, theirs)), expected)
    assert (expected - logits(llama())).abs().max() > 1e-3
