"""Every public adapter beside the repository: read, all keys accounted for, round-trips."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from sharespace.formats import PlainLora, read_adapter, write_adapter
from sharespace.subspace.adapter import Adapter
from support_formats import export


def test_every_key_is_in_a_pair_or_kept(shared_adapters: list[Path]) -> None:
    for weights in shared_adapters:
        adapter = read_adapter(weights.parent)
        tensors = load_file(weights)
        factors = 2 * len(adapter.shapes)
        assert factors + len(adapter.kept) == len(tensors), weights
        for key, tensor in adapter.kept.items():
            assert torch.equal(tensor, tensors[key])


def test_factors_are_those_of_the_file(shared_adapters: list[Path]) -> None:
    for weights in shared_adapters:
        adapter = read_adapter(weights)
        tensors = list(load_file(weights).values())
        module = next(iter(adapter.shapes))
        update = adapter.layer(module)
        assert any(torch.equal(t, update.up) for t in tensors if t.shape == update.up.shape)
        assert any(torch.equal(t, update.down) for t in tensors if t.shape == update.down.shape)


def test_round_trips(shared_adapters: list[Path], tmp_path: Path) -> None:
    for number, weights in enumerate(shared_adapters):
        adapter = read_adapter(weights.parent)
        export(adapter, tmp_path / str(number))
        again = read_adapter(tmp_path / str(number))
        start = "unet." if adapter.provenance.format == "diffusers" else ""
        assert {start + module for module in again.shapes} == set(adapter.shapes)
        for module in again.shapes:
            same_update(again, module, adapter, start + module)
        for key, tensor in adapter.kept.items():
            assert torch.equal(again.kept[key], tensor)


def test_diffusers_round_trips(shared_adapters: list[Path], tmp_path: Path) -> None:
    for weights in shared_adapters:
        adapter = read_adapter(weights)
        if adapter.provenance.format == "diffusers":
            updates = {module: adapter.layer(module) for module in adapter.shapes}
            plain = PlainLora(updates, config=dict(adapter.config))
            (written,) = write_adapter(tmp_path / "x", plain, to="diffusers")
            again = read_adapter(written)
            assert again.shapes == adapter.shapes
            for module in again.shapes:
                same_update(again, module, adapter, module)


def same_update(exported: Adapter, module: str, original: Adapter, original_module: str) -> None:
    """The scaling is in ``up`` now; all modules of these adapters have one rank, so no padding."""
    found, expected = exported.layer(module), original.layer(original_module)
    assert found.scaling == 1.0
    assert torch.equal(found.down, expected.down)
    assert torch.equal(found.up, expected.scaling * expected.up)
