"""Adapters that others trained, in and out: nothing lost where k has room, nothing dropped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from builders import FULL, dense
from shared_data import public_adapters
from sharespace import Adapter, Share, read_adapter

SETS = ("gpt2", "roberta-base", "qwen2.5-3b-instruct")
EVERY = 6
"""Every so many modules; all of them would take minutes."""


@pytest.fixture(params=[*SETS, "stable-diffusion-v1-5"], scope="module")
def opened(request: pytest.FixtureRequest) -> list[Adapter]:
    """The first two adapters of a set."""
    return [read_adapter(p) for p in public_adapters(request.param)[:2]]


def fewer(found: Adapter) -> Adapter:
    """The adapter with only some of its modules, for speed."""
    modules = list(found.shapes)[::EVERY]
    updates = {m: found.layer(m) for m in modules}
    return Adapter.from_updates(
        found.name,
        updates,
        base=found.base,
        shapes={m: found.shapes[m] for m in modules},
        kept=found.kept,
        config=found.config,
        provenance=found.provenance,
    )


def test_everything_comes_back_where_k_has_room(opened: list[Adapter], tmp_path: Path) -> None:
    adapters = [fewer(a) for a in opened]
    share = Share.from_adapters(adapters, k=FULL, dtype=torch.float32)
    assert share.fidelity(adapters).max_relative_error < 1e-5
    assert all(t.bound < 1e-5 for t in share.fidelity().tasks.values())
    diffusers = adapters[0].provenance.format == "diffusers"
    for original in adapters:
        (written,) = share.export(
            original.name, tmp_path / original.name, to="diffusers" if diffusers else "peft"
        )
        assert_comes_back(share, original, written)


def assert_comes_back(share: Share, original: Adapter, written: Path) -> None:
    """The file's updates are ours, and all that is not compressed has the same bits."""
    back = read_adapter(written, original.name)
    ours = share.updates(original.name)
    assert set(back.shapes) == set(original.shapes)
    for module in original.shapes:
        wanted = dense(original.layer(module))
        norm = float(wanted.norm())
        found = dense(back.layer(module))
        assert float((found - dense(ours[module])).norm()) <= 1e-6 * norm
        assert float((found - wanted).norm()) <= 1e-5 * norm
    assert set(back.kept) == set(original.kept)
    for key, tensor in original.kept.items():
        assert back.kept[key].dtype == tensor.dtype
        assert torch.equal(back.kept[key], tensor)


@pytest.mark.parametrize("base", ["gpt2", "roberta-base"])
def test_bounds_and_certificates_hold_on_real_spectra(base: str) -> None:
    adapters = [fewer(read_adapter(p)) for p in public_adapters(base)]
    share = Share.from_adapters(adapters[:2], k=6).merge(adapters[2:])
    measured, bounds = share.fidelity(adapters), share.fidelity()
    for name, task in measured.tasks.items():
        assert task.relative_error <= bounds.tasks[name].bound
    alone = Share.from_adapters(adapters, k=6)
    kept = alone.fidelity(adapters)
    for module, bound in kept.certificates.items():
        errors = [
            t.layers[module].relative_error for t in kept.tasks.values() if module in t.layers
        ]
        assert sum(e * e for e in errors) ** 0.5 <= bound * (1 + 1e-6)
