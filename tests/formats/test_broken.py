"""A corpus of broken adapters: only errors of sharespace come out, and they name the file."""

from __future__ import annotations

import contextlib
import io
import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from sharespace.errors import AdapterError, CorruptAdapterError
from sharespace.formats import PlainLora, read_adapter, write_adapter

MODULE = "layers.0.q"
A = f"base_model.model.{MODULE}.lora_A.weight"
B = f"base_model.model.{MODULE}.lora_B.weight"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def good() -> dict[str, Tensor]:
    head = {"base_model.model.head.weight": torch.ones(2, 2, dtype=torch.float16)}
    return {A: torch.ones(2, 3), B: torch.ones(4, 2)} | head


GOOD = save(good())
HEADER = 8 + struct.unpack("<Q", GOOD[:8])[0]


def place(folder: Path, data: bytes, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(data)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG if config is None else config))
    return folder


def read_all(path: Path) -> None:
    """Everything there is to read."""
    adapter = read_adapter(path)
    for module in adapter.shapes:
        adapter.layer(module)
    for key in adapter.kept:
        assert adapter.kept[key].shape is not None


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(64),
    "html": b"<!DOCTYPE html><html>Not found</html>",
    "huge header": struct.pack("<Q", 2**63) + b"{}",
    "header beyond the end": struct.pack("<Q", 10_000) + b"{}",
    "header over the limit": struct.pack("<Q", 200_000_000) + b"{" + bytes(1000),
    "no json": with_header(b"{nope}"),
    "no utf-8": with_header(b'{"\xff": 1}'),
    "json of another kind": with_header(b'{"a": 3}'),
    "key twice": with_header(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "overlap": with_header({A: entry(0, 24, [2, 3]), B: entry(8, 40, [4, 2])}, bytes(40)),
    "hole": with_header({A: entry(0, 24, [2, 3]), B: entry(32, 64, [4, 2])}, bytes(64)),
    "bytes behind": GOOD + b"more",
    "size of another shape": with_header({A: entry(0, 24, [2, 4])}, bytes(24)),
    "negative": with_header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', bytes(4)),
    "overflow": with_header({A: entry(0, 4, [2**62, 2**62])}, bytes(4)),
    "unknown dtype": with_header({A: entry(0, 4, [1], "F31")}, bytes(4)),
    "pickle": b"\x80\x02cos\nsystem\n(S'true'\ntR.",
    "zip": b"PK\x03\x04" + bytes(60),
    "deep json": with_header(b'{"a":' + b"[" * 50_000),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_bytes(what: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors"):
        read_all(place(tmp_path / "x", BROKEN[what]))


@pytest.mark.parametrize("size", [*range(12), HEADER - 1, HEADER, HEADER + 1, len(GOOD) - 1])
def test_truncated_safetensors(size: int, tmp_path: Path) -> None:
    with pytest.raises(CorruptAdapterError):
        read_all(place(tmp_path / "x", GOOD[:size]))


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_bins(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.mkdir()
    torch.save(good(), path / "whole", _use_new_zipfile_serialization=not legacy)
    whole = (path / "whole").read_bytes()
    (path / "adapter_config.json").write_text(json.dumps(CONFIG))
    for size in [*range(0, len(whole), max(1, len(whole) // 150)), len(whole) - 1]:
        (path / "adapter_model.bin").write_bytes(whole[:size])
        with pytest.raises(CorruptAdapterError):
            read_all(path)


SHAPES: dict[str, dict[str, Tensor]] = {
    "ranks differ": {A: torch.ones(2, 3), B: torch.ones(4, 3)},
    "B transposed": {A: torch.ones(2, 3), B: torch.ones(2, 4)},
    "no dimensions": {A: torch.tensor(1.0), B: torch.tensor(1.0)},
    "unsharded": {A: torch.ones(0), B: torch.ones(0)},
    "one dimension": {A: torch.ones(6), B: torch.ones(8)},
    "rank 0": {A: torch.ones(0, 3), B: torch.ones(4, 0)},
    "empty side": {A: torch.ones(2, 0), B: torch.ones(4, 2)},
    "kernel in one": {A: torch.ones(2, 3, 1, 1), B: torch.ones(4, 2)},
    "kernel in B": {A: torch.ones(2, 3, 3, 3), B: torch.ones(4, 2, 3, 3)},
    "six dimensions": {A: torch.ones(2, 3, 1, 1, 1, 1), B: torch.ones(4, 2, 1, 1, 1, 1)},
    "integers": {A: torch.ones(2, 3).int(), B: torch.ones(4, 2).int()},
    "truth values": {A: torch.ones(2, 3).bool(), B: torch.ones(4, 2).bool()},
    "complex": {A: torch.ones(2, 3) * 1j, B: torch.ones(4, 2) * 1j},
    "eight bits": {
        A: torch.ones(2, 3).to(torch.float8_e4m3fn),
        B: torch.ones(4, 2).to(torch.float8_e4m3fn),
    },
    "embedding without rows": {
        A: torch.ones(2, 3),
        B: torch.ones(4, 2),
        "base_model.model.embed.lora_embedding_A": torch.tensor(1.0),
    },
    "no module": {
        "base_model.model.lora_A.weight": torch.ones(2, 3),
        "base_model.model.lora_B.weight": torch.ones(4, 2),
    },
}


@pytest.mark.parametrize("what", SHAPES)
def test_broken_tensors(what: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="lora_"):
        read_all(place(tmp_path / "x", save(SHAPES[what])))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", [A, B])
def test_factors_that_are_not_finite(key: str, value: float, tmp_path: Path) -> None:
    tensors = good()
    tensors[key][1, 1] = value
    adapter = read_adapter(place(tmp_path / "x", save(tensors)))
    with pytest.raises(CorruptAdapterError, match="NaN or infinity in 1 of"):
        adapter.layer(MODULE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_factors_are_finite(dtype: torch.dtype, tmp_path: Path) -> None:
    """Their sum is not."""
    largest = torch.finfo(dtype).max
    tensors = {A: torch.full((2, 3), largest, dtype=dtype), B: torch.ones(4, 2, dtype=dtype)}
    adapter = read_adapter(place(tmp_path / "x", save(tensors)))
    assert adapter.layer(MODULE).down.max() == largest


def test_kept_tensors_may_hold_nan(tmp_path: Path) -> None:
    """They are given back as they are, whatever they are."""
    tensors = good() | {"base_model.model.bias": torch.tensor([float("nan")])}
    adapter = read_adapter(place(tmp_path / "x", save(tensors)))
    assert adapter.kept["base_model.model.bias"].isnan().all()


@pytest.mark.parametrize("module", ["../../etc", "a/b", "/abs", "a\nb", "a.b\u2028", "..", "a\0b"])
def test_names_that_look_like_paths_are_only_names(module: str, tmp_path: Path) -> None:
    tensors = {
        f"base_model.model.{module}.lora_A.weight": torch.ones(2, 3),
        f"base_model.model.{module}.lora_B.weight": torch.ones(4, 2),
        f"base_model.model.{module}.bias": torch.ones(4),
    }
    adapter = read_adapter(place(tmp_path / "x", save(tensors)))
    assert list(adapter.shapes) == [module]
    updates = {module: adapter.layer(module)}
    write_adapter(
        tmp_path / "y", PlainLora(updates, kept=adapter.kept, config=dict(adapter.config))
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "y"]
    assert list(read_adapter(tmp_path / "y").shapes) == [module]


def mutations(data: bytes, header: int) -> st.SearchStrategy[bytes]:
    """The bytes with a few changed, mostly in the header."""
    at = st.one_of(st.integers(0, header - 1), st.integers(0, len(data) - 1))

    def apply(changes: list[tuple[int, int]]) -> bytes:
        changed = bytearray(data)
        for index, value in changes:
            changed[index] = value
        return bytes(changed)

    return st.lists(st.tuples(at, st.integers(0, 255)), min_size=1, max_size=4).map(apply)


def only_our_errors(path: Path) -> None:
    with contextlib.suppress(AdapterError):
        read_all(path)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=mutations(GOOD, HEADER))
def test_flipped_bytes_of_safetensors(data: bytes, tmp_path: Path) -> None:
    path = place(tmp_path / "x", data)
    only_our_errors(path)


@cache
def bin_bytes(legacy: bool) -> bytes:
    file = io.BytesIO()
    torch.save(good(), file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True])
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_flipped_bytes_of_bins(legacy: bool, tmp_path: Path, data: st.DataObject) -> None:
    whole = bin_bytes(legacy)
    path = tmp_path / "x"
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (path / "adapter_model.bin").write_bytes(data.draw(mutations(whole, min(900, len(whole)))))
    only_our_errors(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FIELDS = [
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_parameters"),
    *("init_lora_weights", "base_model_name_or_path", "revision", "peft_type", "arrow_config"),
]


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_configs_of_any_values(config: dict[str, Any], tmp_path: Path) -> None:
    path = place(tmp_path / "x", GOOD, CONFIG | config)
    only_our_errors(path)
