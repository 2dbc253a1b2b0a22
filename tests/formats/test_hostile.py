"""Files that would hang the reader or take all memory are refused before any work."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sharespace import Share
from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.formats import read_adapter

KEY = "base_model.model.encoder.layers.query_projection"


def _folder(path: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    path.mkdir()
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 2} | config
    (path / "adapter_config.json").write_text(json.dumps(fields))
    if tensors is None:
        save_file(_pair(), path / "adapter_model.safetensors")
    else:
        torch.save(tensors, path / "adapter_model.bin")
    return path


def _pair() -> dict[str, Tensor]:
    return {f"{KEY}.lora_A.weight": torch.ones(2, 5), f"{KEY}.lora_B.weight": torch.ones(4, 2)}


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_explode_are_matched(field: str, tmp_path: Path) -> None:
    hostile: dict[str, Any] = {field: {"(([a-z_.])+.)+[A-Z]([a-z])+": 2}}
    share = Share.from_adapters(_folder(tmp_path / "a", **hostile), k=2)
    assert share.export("a", tmp_path / "out")


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_cannot_be_matched_are_refused(field: str, tmp_path: Path) -> None:
    unclear: dict[str, Any] = {field: {r"(a)\1": 2}}
    with pytest.raises(CorruptAdapterError, match=f"{field} .*simpler"):
        read_adapter(_folder(tmp_path / "a", **unclear))


@pytest.mark.parametrize("config", [{"r": 10**400}, {"r": 10**5000}, {"lora_alpha": 10**5000}])
def test_numbers_larger_than_any(config: dict[str, int], tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a")
    name, value = next(iter(config.items()))
    text = f'{{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "{name}": {"1" * len(bin(value))}}}'
    (folder / "adapter_config.json").write_text(text.replace(f'"{name}": 2, ', "", 1))
    with pytest.raises(CorruptAdapterError):
        read_adapter(folder)


def test_a_configuration_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a")
    with (folder / "adapter_config.json").open("wb") as stream:
        stream.truncate(1 << 32)
    with pytest.raises(CorruptAdapterError, match="more than the 67108864 of any configuration"):
        read_adapter(folder)


def test_a_pipe_and_a_device_are_not_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "x.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(CorruptAdapterError, match="a named pipe, not a regular file"):
        read_adapter(pipe)
    with pytest.raises(CorruptAdapterError, match="a device"):
        read_adapter("/dev/zero")
    folder = _folder(tmp_path / "a")
    (folder / "adapter_config.json").unlink()
    os.mkfifo(folder / "adapter_config.json")
    with pytest.raises(CorruptAdapterError):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("down", "named"),
    [
        (torch.zeros(1).expand(2, 10**10), r"repeats its 4 bytes.*contiguous"),
        (torch.empty(2, 5, device="meta"), "no data.*meta device"),
    ],
    ids=["stride 0", "meta"],
)
def test_tensors_without_numbers_of_their_own(down: Tensor, named: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptAdapterError, match=named):
        read_adapter(_folder(tmp_path / "a", _pair() | {f"{KEY}.lora_A.weight": down}))


def test_an_archive_that_unpacks_to_more_than_itself(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a", _pair())
    path = folder / "adapter_model.bin"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data + bytes(100_000))
    with pytest.raises(CorruptAdapterError, match="larger than the file"):
        read_adapter(folder)


def test_an_archive_of_an_unknown_version(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a", _pair())
    path = folder / "adapter_model.bin"
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\x01\x02") + 6] = 225
    path.write_bytes(data)
    with pytest.raises(CorruptAdapterError, match="not a PyTorch file"):
        read_adapter(folder)


def test_torch_does_not_advise_to_unpickle_code(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a", _pair())
    buffer = io.BytesIO()
    torch.save({"a": Path("x")}, buffer)
    (folder / "adapter_model.bin").write_bytes(buffer.getvalue())
    with pytest.raises(CorruptAdapterError, match="it would run pathlib") as refused:
        read_adapter(folder)
    assert "weights_only" not in str(refused.value)


def test_a_key_of_a_million_characters(tmp_path: Path) -> None:
    save_file({"a." * 500_000 + "lora_A.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(CorruptAdapterError, match="at most 1,000"):
        read_adapter(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        ("SHARESPACE", "sharespace.learn.merge_from"),
        ("LOHA", "save_as_lora"),
        ("ADALORA", "convert_to_lora"),
        ("PROMPT_TUNING", "changes the input"),
    ],
)
def test_other_methods_say_what_to_do(method: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError, match=remedy):
        read_adapter(_folder(tmp_path / "a", peft_type=method))
