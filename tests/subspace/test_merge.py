"""Step 3: what a merge takes, keeps and refuses."""

from __future__ import annotations

import pytest
import torch

from builders import FULL, MODULE, adapter, build, strangers, update, worst
from sharespace.errors import (
    CorruptAdapterError,
    MismatchError,
    OptionError,
    TaskExistsError,
)
from sharespace.subspace.adapter import BaseModel
from sharespace.subspace.merge import merge


def test_unusable_newcomers_are_refused() -> None:
    model = build([adapter("a", update(9, 7, 2), base=BaseModel("org/one"))], 3)
    with pytest.raises(OptionError, match="none"):
        merge(model, [])
    with pytest.raises(TaskExistsError, match="'a'"):
        merge(model, [adapter("a", update(9, 7, 2))])
    with pytest.raises(TaskExistsError, match="'b'"):
        merge(model, [adapter("b", update(9, 7, 2))] * 2)
    with pytest.raises(MismatchError, match="org/two"):
        merge(model, [adapter("b", update(9, 7, 2), base=BaseModel("org/two"))])
    with pytest.raises(MismatchError, match="8x7"):
        merge(model, [adapter("b", update(8, 7, 2))])
    sick = update(9, 7, 2)
    sick.up[0, 0] = float("nan")
    with pytest.raises(CorruptAdapterError, match="'sick'"):
        merge(model, [adapter("sick", sick)])
    with pytest.raises(OptionError, match="cap 0"):
        merge(model, [adapter("b", update(9, 7, 2))], cap=0)


def test_the_model_that_is_merged_into_stays_as_it_is() -> None:
    model = build(strangers(2), 3)
    basis = model.layers[MODULE].left_basis.clone()
    merge(model, [adapter("new", update(12, 9, 3, 8))])
    assert list(model.tasks) == ["t0", "t1"]
    assert torch.equal(model.layers[MODULE].left_basis, basis)


def test_layers_that_no_newcomer_adapts_are_the_same_objects() -> None:
    model = build([adapter("a", {"x": update(9, 7, 2), "y": update(8, 6, 2)})], 3)
    merged = merge(model, [adapter("b", {"x": update(9, 7, 2, 5)})])
    assert merged.layers["y"] is model.layers["y"]
    assert merged.tasks["a"].coefficients["y"] is model.tasks["a"].coefficients["y"]


def test_the_ledger_grows_only_where_something_was_lost() -> None:
    roomy, full = build(strangers(2), FULL), build(strangers(2), 3)
    new = adapter("new", update(12, 9, 3, 8))
    assert merge(roomy, [new]).tasks["t0"].ledger.events == ("init",)
    assert merge(full, [new]).tasks["t0"].ledger.events == ("init", "merge")
    assert merge(full, [new]).tasks["new"].ledger.events == ("merge",)


def test_a_task_that_took_no_module_of_the_newcomers_is_untouched() -> None:
    base = BaseModel("acme/base")
    model = build([adapter("a", {"x": update(9, 7, 2)}, base=base)], 2)
    merged = merge(model, [adapter("b", {"y": update(8, 6, 2)}, base=base)])
    assert merged.tasks["a"] is model.tasks["a"]


def test_a_cap_is_refused_under_a_budget() -> None:
    model = build(strangers(2), budget=2000)
    with pytest.raises(OptionError, match="budget"):
        merge(model, [adapter("b", update(12, 9, 2, 9))], cap=3)


def test_progress_is_told_after_every_module() -> None:
    told: list[tuple[str, int, int]] = []
    model = build([adapter("a", {"x": update(9, 7, 2), "y": update(8, 6, 2)})], 3)
    new = adapter("b", {"y": update(8, 6, 2, 1), "z": update(5, 5, 1)})
    merge(model, [new], progress=lambda *args: told.append(args))
    assert told == [("y", 1, 2), ("z", 2, 2)]


def test_only_directions_that_rank_p_uses_are_added() -> None:
    """With p = 1 a newcomer of rank 3 needs one direction a side, not three."""
    model = build([adapter("a", update(20, 16, 3, 1))], variance=0.5, p=1)
    before = model.layers[MODULE].k
    merged = merge(model, [adapter("b", update(20, 16, 3, 2))])
    assert merged.layers[MODULE].k == (before[0] + 1, before[1] + 1)
    best = torch.linalg.svdvals(_dense(2))[1:].norm()
    assert worst(merged, [adapter("b", update(20, 16, 3, 2))]) <= float(best) + 1e-5


def _dense(seed: int) -> torch.Tensor:
    found = update(20, 16, 3, seed)
    return found.up.double() @ found.down.double()


def test_a_zero_newcomer_needs_nothing() -> None:
    model = build(strangers(2), FULL)
    zero = update(12, 9, 3, norm=0.0)
    merged = merge(model, [adapter("zero", zero)])
    assert merged.layers[MODULE].k == model.layers[MODULE].k
    assert merged.tasks["zero"].ledger.bound == 0
    first = merge(build([adapter("zero", zero)], FULL), strangers(2))
    assert worst(first, strangers(2)) < 1e-5
