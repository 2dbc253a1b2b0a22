"""Files of tensors: lazy, nothing held, and never another file's bytes."""

from __future__ import annotations

import hashlib
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sharespace.errors import CorruptAdapterError, OptionError, UnsupportedAdapterError
from sharespace.files import SAFETENSORS_DTYPES
from sharespace.formats import read_adapter
from sharespace.formats.format_registry import open_weights
from sharespace.formats.torch_file import TorchFile

STATM = Path("/proc/self/statm")
UNET = "unet.mid_block.attentions.0.proj_in"


def factors(r: int = 2, n: int = 4, d: int = 4, modules: int = 1) -> dict[str, Tensor]:
    tensors = {}
    for i in range(modules):
        tensors[f"{UNET}{i}.lora_A.weight"] = torch.randn(r, d)
        tensors[f"{UNET}{i}.lora_B.weight"] = torch.randn(n, r)
    return tensors


@pytest.mark.parametrize("dtype", sorted(SAFETENSORS_DTYPES.values(), key=str), ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 3)], ids=str)
def test_every_dtype_comes_back(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    saved = torch.arange(6).reshape(2, 3).to(dtype)
    saved = saved if shape == (2, 3) else torch.zeros(shape, dtype=dtype)
    save_file({"x": saved, "y": saved.clone()}, tmp_path / "f.safetensors")
    file = open_weights(tmp_path / "f.safetensors")
    (found,) = file.read("y")
    assert found.dtype == dtype
    assert found.shape == saved.shape
    assert found.contiguous().view(torch.uint8).equal(saved.view(torch.uint8)) if shape else True


@pytest.mark.skipif(not STATM.exists(), reason="no /proc on this system")
def test_reading_holds_no_memory(tmp_path: Path) -> None:
    """Layer by layer over several adapters: resident memory does not grow with the files read."""
    for i in range(8):
        save_file(factors(16, 1024, 1024, modules=32), tmp_path / f"{i}.safetensors")
    adapters = [read_adapter(tmp_path / f"{i}.safetensors") for i in range(8)]
    total = sum(adapter.nbytes for adapter in adapters)
    before = resident()
    for module in adapters[0].shapes:
        for adapter in adapters:
            adapter.layer(module)
    assert total > 30_000_000
    assert resident() - before < total / 5


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(STATM.read_text().split()[1])
    return pages * resource.getpagesize()


def test_tensors_are_their_reader_s_own(tmp_path: Path) -> None:
    save_file(factors(), tmp_path / "x.safetensors")
    adapter = read_adapter(tmp_path / "x.safetensors")
    first = adapter.layer(f"{UNET}0")
    first.up.zero_()
    assert adapter.layer(f"{UNET}0").up.any()


def test_digest_and_size(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(factors(), path)
    adapter = read_adapter(path)
    assert adapter.provenance.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert adapter.nbytes == 2 * 2 * 4 * 4


def test_unknown_modules(tmp_path: Path) -> None:
    save_file(factors(), tmp_path / "x.safetensors")
    with pytest.raises(OptionError, match="'nope'"):
        read_adapter(tmp_path / "x.safetensors").layer("nope")


@pytest.mark.parametrize("replace", [True, False])
def test_a_file_that_changes_is_not_read(replace: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(factors(), path)
    adapter = read_adapter(path)
    if replace:
        save_file(factors(d=5), path)
    else:
        path.unlink()
    with pytest.raises(CorruptAdapterError):
        adapter.layer(f"{UNET}0")


def test_git_lfs_pointer(tmp_path: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "adapter_model.safetensors").write_text(text)
    with pytest.raises(CorruptAdapterError, match="git lfs pull"):
        read_adapter(tmp_path)


def test_bin_tensors_are_read_by_place(tmp_path: Path) -> None:
    tensors = factors(modules=3) | {"empty": torch.zeros(0), "view": torch.arange(9.0)[2:5]}
    tensors["shared"] = tensors["view"][1:]
    tensors["transposed"] = torch.arange(6.0).reshape(2, 3).T
    torch.save(tensors, tmp_path / "x.bin")
    file = open_weights(tmp_path / "x.bin")
    assert isinstance(file, TorchFile)
    assert set(tensors) - set(file.ranges.starts) == {"empty", "transposed"}
    for key, tensor in tensors.items():
        assert torch.equal(file.read(key)[0], tensor)


@pytest.mark.parametrize(
    ("saved", "named"),
    [
        ([1, 2], "holds a list"),
        ({"x": 1}, "entry 'x' is a int"),
        ({1: torch.ones(1)}, "entry 1"),
        ({"x": {"y": torch.ones(1)}}, "entry 'x' is a dict"),
    ],
)
def test_bins_that_are_no_state_dict(saved: object, named: str, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "x.bin")
    with pytest.raises(CorruptAdapterError, match=named):
        read_adapter(tmp_path / "x.bin")


def test_bins_with_code_are_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Touch:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (ran,)

    torch.save({"x": Touch()}, tmp_path / "x.bin")
    with pytest.raises(CorruptAdapterError, match="weights only"):
        read_adapter(tmp_path / "x.bin")
    assert not ran.exists()


@pytest.mark.parametrize("tensor", [torch.eye(3).to_sparse(), torch.ones(1).to(torch.complex128)])
def test_bin_tensors_that_safetensors_cannot_hold(tensor: Tensor, tmp_path: Path) -> None:
    torch.save({"x": tensor}, tmp_path / "x.bin")
    with pytest.raises(UnsupportedAdapterError, match="'x'"):
        read_adapter(tmp_path / "x.bin")
