"""Out of core against in memory: the same results and books, and a refusal where it cannot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import (
    MODULE,
    ROUNDING,
    Family,
    absolute_errors,
    adapter,
    families,
    gauss,
    law,
    orthonormality,
    relative_errors,
    relatives,
    strangers,
    update,
    weighed_error,
    worst,
)
from shared_data import public_adapters
from sharespace.errors import CorruptAdapterError, OptionError
from sharespace.formats import read_adapter
from sharespace.linalg.dimension import Dimension
from sharespace.subspace import build as build_module
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.build import initialise
from sharespace.subspace.build_streamed import build_bytes, merge_bytes, portions
from sharespace.subspace.coefficients import PerTask
from sharespace.subspace.merge import merge
from sharespace.subspace.state import BuildSettings, ShareModel

TINY = 1000
"""Bytes: less than any layer here takes, so all are built out of core, one task at a time."""


def build(adapters: list[Adapter], memory: int | None = TINY, **options: Any) -> ShareModel:
    settings = BuildSettings(p=options.pop("p", None), method=options.pop("method", "joint"))
    dtype = options.pop("dtype", None)
    return initialise(adapters, Dimension(**options), settings, dtype=dtype, memory=memory)


def streamed(model: ShareModel) -> bool:
    return all(layer.streamed for layer in model.layers.values())


@law()
@given(
    family=families(
        dtypes=(torch.float32, torch.float64, torch.float16, torch.bfloat16), tasks=(1, 6)
    ),
    k=st.integers(1, 8),
    p=st.sampled_from([None, 1, 3]),
)
def test_ledger_and_certificate_bound_the_errors(family: Family, k: int, p: int | None) -> None:
    model = build(family.adapters, k=k, p=p, memory=1)
    assert streamed(model)
    layer, lost = model.layers[MODULE], absolute_errors(model, family.adapters)
    for basis in (layer.left_basis, layer.right_basis):
        assert orthonormality(basis) < ROUNDING[family.dtype]
    for name, errors in lost.items():
        ledger = model.tasks[name].ledger
        bound, norm = float(ledger.bounds[0]), ledger.norm(MODULE)
        assert errors[MODULE] <= bound + 1e-7 * norm
        # And it is the error, but for what rounding in the stored dtype may hide.
        slack = 10 * ROUNDING[family.dtype] * norm
        assert bound <= errors[MODULE] * (1 + 10 * ROUNDING[family.dtype]) + slack
    assert layer.certificate is not None
    allowed = ROUNDING[family.dtype] * math.sqrt(len(family.members))
    assert weighed_error(model, family.adapters) <= layer.certificate.bound + allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k_of_the_numerical_rank_is_exact(dtype: torch.dtype) -> None:
    adapters = relatives(40, 30, 25, k=5, dtype=dtype)
    model = build(adapters, k=5)
    assert streamed(model)
    assert model.layers[MODULE].k == (5, 5)
    assert worst(model, adapters) < (1e-5 if dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize(
    ("noise", "k", "allowed"), [(0.0, 3, 1.02), (0.05, 6, 1.02), (0.5, 6, 1.05)]
)
def test_errors_are_those_of_memory(noise: float, k: int, allowed: float) -> None:
    adapters = relatives(30, 40, 35, k=6, noise=noise)
    here, there = build(adapters, None, k=k), build(adapters, k=k)
    assert not any(layer.streamed for layer in here.layers.values())
    in_memory, out_of_core = (weighed_error(m, adapters) for m in (here, there))
    assert out_of_core <= allowed * in_memory + 1e-5
    assert max(relative_errors(there, adapters).values()) <= 1.0


@pytest.mark.parametrize("base", ["gpt2", "roberta-base"])
@pytest.mark.parametrize("k", [4, 12])
def test_real_adapters_lose_no_more_than_in_memory(base: str, k: int) -> None:
    """In float32, where the ledger is the error itself."""
    found = [read_adapter(p, p.name) for p in public_adapters(base)]
    adapters = [_part(a) for a in found]
    here, there = (build(adapters, m, k=k, dtype=torch.float32) for m in (None, TINY))
    assert streamed(there)
    for module in there.layers:
        in_memory, out_of_core = (_weighed_bound(m, module) for m in (here, there))
        assert out_of_core <= 1.01 * in_memory + 1e-5


def _part(found: Adapter) -> Adapter:
    """Four modules of an adapter."""
    wanted = list(found.shapes)[:3] + list(found.shapes)[-1:]
    return Adapter.from_updates(found.name, {m: found.layer(m) for m in wanted}, base=found.base)


def _weighed_bound(model: ShareModel, module: str) -> float:
    total = 0.0
    for task in model.tasks.values():
        if module in task.coefficients:
            at = task.ledger.modules.index(module)
            total += float(task.ledger.bounds[at] / task.ledger.norm(module)) ** 2
    return math.sqrt(total)


@pytest.mark.parametrize("variance", [0.6, 0.9, 0.99])
def test_an_explained_variance_is_reached_with_hardly_more_directions(variance: float) -> None:
    adapters = relatives(20, 200, 180, k=12, rank=3, noise=0.02)
    memory = build_bytes(adapters, MODULE) - 1
    here, there = (
        build(adapters, None, variance=variance),
        build(adapters, memory, variance=variance),
    )
    assert streamed(there)
    lost = weighed_error(there, adapters) ** 2
    assert lost <= (1 - variance) * len(adapters) * (1 + 1e-5)
    assert sum(there.layers[MODULE].k) <= sum(here.layers[MODULE].k) + 2
    assert there.layers[MODULE].cap is None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"error": 0.1}, "largest error"),
        ({"budget": 10_000}, "byte budget"),
        ({"variance": 1.0}, "every direction"),
        ({"variance": 0.999}, "explained variance needs"),
        ({"k": 4, "method": "share"}, "method 'share'"),
    ],
)
def test_what_cannot_be_streamed_is_refused_or_done_in_memory(
    options: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = strangers(30, 60, 50)
    with pytest.raises(OptionError, match=why):
        build(adapters, **options)
    monkeypatch.setattr(build_module, "DEFAULT_MEMORY", TINY)
    assert not streamed(build(adapters, None, **options))


def test_what_fits_is_built_in_memory_bit_for_bit() -> None:
    adapters = relatives(6)
    needed = build_bytes(adapters, MODULE)
    here, there = build(adapters, None, k=3), build(adapters, needed, k=3)
    assert torch.equal(here.layers[MODULE].left_basis, there.layers[MODULE].left_basis)
    assert streamed(build(adapters, needed - 1, k=3))


def test_a_diverged_adapter_is_named() -> None:
    bad = update(12, 9, 3)
    bad.up[0, 0] = math.nan
    with pytest.raises(CorruptAdapterError, match="'bad'"):
        build([*strangers(3), adapter("bad", bad)], k=2)


def test_factors_too_large_to_compute_with_are_refused() -> None:
    huge = LayerUpdate(torch.full((12, 2), 3e38), torch.full((2, 9), 3e38))
    with pytest.raises(CorruptAdapterError, match="too large"):
        build([*strangers(2), adapter("huge", huge)], k=2)


def test_a_zero_update_has_nothing_to_lose() -> None:
    empty = LayerUpdate(torch.zeros(12, 3), torch.ones(3, 9))
    model = build([*strangers(4), adapter("zero", empty)], k=3)
    assert model.tasks["zero"].ledger.bound == 0.0
    everything = build([adapter("zero", empty)], k=3)
    assert worst(everything, [adapter("zero", empty)]) == 0.0


@law(10)
@given(
    family=families(tasks=(4, 7), dtypes=(torch.float32, torch.float64)),
    k=st.integers(2, 6),
    cut=st.integers(1, 3),
)
def test_a_merge_at_the_cap_keeps_its_books(family: Family, k: int, cut: int) -> None:
    known, new = family.adapters[:cut], family.adapters[cut:]
    model = merge(build(known, None, k=k), new, memory=1)
    assert streamed(model)
    assert list(model.tasks) == [a.name for a in family.adapters]
    assert max(model.layers[MODULE].k) <= k
    for name, errors in absolute_errors(model, family.adapters).items():
        ledger = model.tasks[name].ledger
        assert errors[MODULE] <= float(ledger.bounds[0]) + 1e-6 * ledger.norm(MODULE)


@pytest.mark.parametrize("cap", [4, 6])
def test_a_merge_out_of_core_is_as_good_as_one_in_memory(cap: int) -> None:
    adapters = relatives(40, 50, 45, k=6, noise=0.05)
    known = build(adapters[:10], None, k=cap)
    here, there = merge(known, adapters[10:]), merge(known, adapters[10:], memory=TINY)
    assert streamed(there)
    assert not streamed(here)
    assert weighed_error(there, adapters) <= 1.02 * weighed_error(here, adapters)


def test_a_merge_below_the_cap_changes_no_known_task() -> None:
    adapters = relatives(20, 30, 25, k=5)
    known = build(adapters[:2], None, k=8)
    merged = merge(known, adapters[2:], memory=TINY)
    assert merged.layers[MODULE].k == (5, 5)
    assert worst(merged, adapters) < 1e-5
    for name, task in known.tasks.items():
        assert merged.tasks[name].ledger.events == task.ledger.events


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_without_a_cap_newcomers_are_merged_in_portions_and_nothing_is_lost(noise: float) -> None:
    adapters = relatives(12, 40, 35, k=5, noise=noise)
    known = build(adapters[:3], None, variance=0.9999)
    memory = merge_bytes(adapters[:4], MODULE)
    assert len(portions(adapters[3:], MODULE, memory)) == 3
    here, there = merge(known, adapters[3:]), merge(known, adapters[3:], memory=memory)
    assert streamed(there)
    assert there.layers[MODULE].k == here.layers[MODULE].k
    new = adapters[3:]
    assert max(relative_errors(there, new).values()) < 1e-5
    for name in known.tasks:
        assert there.tasks[name].ledger.bound == here.tasks[name].ledger.bound


def test_portions_hold_each_adapter_once_in_order() -> None:
    adapters = [adapter(f"t{i}", update(20, 10, 1 + i % 5, i)) for i in range(17)]
    for memory in (1, 20_000, 10**9):
        found = portions(adapters, MODULE, memory)
        assert [a for part in found for a in part] == adapters
        assert all(len(p) == 1 or merge_bytes(p, MODULE) <= memory for p in found)


def test_a_module_that_the_model_lacks_is_added_out_of_core() -> None:
    known = build([adapter("old", {"a": update(12, 9, 2)})], None, k=3)
    new = [adapter(f"t{i}", {"b": update(14, 8, 2, i)}) for i in range(5)]
    merged = merge(known, new, memory=1)
    assert merged.layers["b"].streamed
    assert not merged.layers["a"].streamed
    assert merged.layers["b"].k == (3, 3)


def test_private_updates_of_a_model_stay_as_they_are() -> None:
    """A budget keeps some tasks outside of the subspace; without it merges go on."""
    model = build(strangers(4, 30, 20), None, k=3)
    factors = PerTask(gauss(1, 30, 1).float(), gauss(2, 20, 1).float())
    task = model.tasks["t0"]
    private = type(task)("t0", {MODULE: factors}, task.ledger)
    model = model.with_tasks([private, *list(model.tasks.values())[1:]])
    new = strangers(5, 30, 20, seed=3)
    merged = merge(model, [a.with_name(f"n{a.name}") for a in new], memory=1)
    assert merged.tasks["t0"].coefficients[MODULE] is factors


def test_the_store_remembers_it(tmp_path: Path) -> None:
    from sharespace import Share

    share = Share.from_adapters(relatives(5), k=3, memory=1)
    share.save(tmp_path / "s")
    assert streamed(Share.load(tmp_path / "s").model)
    plain = Share.from_adapters(relatives(5), k=3)
    plain.save(tmp_path / "p")
    assert not streamed(Share.load(tmp_path / "p").model)


@pytest.mark.parametrize("memory", [0, -5])
def test_no_memory_at_all_is_refused(memory: int) -> None:
    from sharespace import Share

    with pytest.raises(OptionError, match=r"memory=.* at least 1"):
        Share.from_adapters(relatives(2), k=2, memory=memory)
