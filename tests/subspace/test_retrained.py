"""Known tasks with other coefficients in the same bases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import MODULE, adapter, build, dense, gauss, law, stored_dense, strangers, update
from sharespace.errors import MismatchError, TaskNotFoundError
from sharespace.subspace.coefficients import Core, Factors, PerTask
from sharespace.subspace.merge import merge
from sharespace.subspace.state import CALIBRATE, FINETUNE, Ledger, ShareModel, retrained

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NEW = adapter("new", update(12, 9, 3, 77))


def pair(model: ShareModel, p: int, seed: int = 5) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    k_left, k_right = model.layers[MODULE].k
    return {MODULE: (gauss(seed, k_left, p).float(), gauss(seed + 1, k_right, p).float())}


def test_nothing_else_changes() -> None:
    model = build(strangers(3), 4)
    changed = retrained(model, "t1", pair(model, 2), {})
    assert list(changed.tasks) == ["t0", "t1", "t2"]
    assert changed.layers[MODULE] is model.layers[MODULE]
    assert changed.tasks["t0"] is model.tasks["t0"]
    assert changed.tasks["t1"].kept is model.tasks["t1"].kept
    assert isinstance(changed.tasks["t1"].coefficients[MODULE], Factors)
    whole = retrained(model, "t1", pair(model, 4), {}).tasks["t1"].coefficients[MODULE]
    assert isinstance(whole, Core)


def test_kept_tensors_are_replaced_by_key() -> None:
    one, two = torch.zeros(2), torch.ones(2)
    model = build([adapter("a", update(12, 9, 3), kept={"x": one, "y": one})], 2)
    kept = retrained(model, "a", {}, {"y": two}).tasks["a"].kept
    assert torch.equal(kept["x"], one)
    assert torch.equal(kept["y"], two)


@pytest.mark.parametrize("event", [FINETUNE, CALIBRATE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merge_s_loss_is_bounded_whatever_came_before(dtype: torch.dtype, event: str) -> None:
    """By the ledger: from the trained task, or (calibrated) from what it came as."""
    original = strangers(3)
    model = build(original, 4, dtype=dtype)
    e, f = (0.3 * factor for factor in pair(model, 3)[MODULE])
    changed = retrained(model, "t1", {MODULE: (e, f)}, {}, event)
    layer = model.layers[MODULE]
    wanted = (
        layer.left_basis.double() @ (e.double() @ f.double().mT) @ layer.right_basis.double().mT
    )
    reference = wanted if event == FINETUNE else dense(original[1].layer(MODULE))
    for found in (changed, merge(changed, [NEW])):
        true = float((stored_dense(found, "t1") - reference).norm())
        assert true <= float(found.tasks["t1"].ledger.bounds[0]) * (1 + 1e-6) + 1e-12


@law()
@given(moves=st.lists(st.sampled_from([FINETUNE, CALIBRATE]), min_size=1, max_size=4))
def test_bounds_hold_after_any_sequence(moves: list[str]) -> None:
    original = strangers(2)
    model, reference = build(original, 3), dense(original[0].layer(MODULE))
    for step, event in enumerate(moves):
        model = retrained(model, "t0", pair(model, 2, step), {}, event)
        if event == FINETUNE:
            reference = stored_dense(model, "t0")
        model = merge(model, [adapter(f"new{step}", update(12, 9, 2, 40 + step))])
        true = float((stored_dense(model, "t0") - reference).norm())
        assert true <= float(model.tasks["t0"].ledger.bounds[0]) * (1 + 1e-5) + 1e-5


def test_the_earlier_bound_is_that_of_the_segment_before() -> None:
    one = torch.ones(1, dtype=torch.float64)
    ledger = Ledger(("m",), one, torch.zeros(1, 0, dtype=torch.float64), ())
    assert (ledger.bound, ledger.earlier_bound, ledger.segment_start) == (0, 0, 0)
    for event, lost in [("init", 0.1), ("merge", 0.2), (FINETUNE, 0.01), ("merge", 0.3)]:
        ledger = ledger.with_event(event, {"m": lost})
    assert ledger.bound == pytest.approx(0.31)
    assert ledger.earlier_bound == pytest.approx(0.3)
    assert float(ledger.estimates) == pytest.approx((0.01**2 + 0.3**2) ** 0.5)
    ledger = ledger.with_event(FINETUNE, {"m": 0.02})
    assert ledger.bound == pytest.approx(0.02)
    assert ledger.earlier_bound == pytest.approx(0.31)
    assert ledger.measured


def test_a_private_update_stays_private() -> None:
    model = build(strangers(2), 4)
    own = PerTask(gauss(1, 12, 2).float(), gauss(2, 9, 2).float())
    task = replace(model.tasks["t0"], coefficients={MODULE: own})
    model = model.with_tasks([task, model.tasks["t1"]])
    new = (2 * own.left, own.right)
    changed = retrained(model, "t0", {MODULE: new}, {})
    assert isinstance(changed.tasks["t0"].coefficients[MODULE], PerTask)
    assert changed.tasks["t0"].ledger.bound < 1e-7
    moved = retrained(model, "t0", {MODULE: new}, {}, CALIBRATE).tasks["t0"].ledger
    expected = float((own.left @ own.right.mT).norm())
    assert float(moved.truncations[0, -1]) == pytest.approx(expected, rel=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    model = build(strangers(2), 4)
    e, f = pair(model, 2)[MODULE]
    with pytest.raises(TaskNotFoundError):
        retrained(model, "t9", {}, {})
    with pytest.raises(MismatchError, match="'other'"):
        retrained(model, "t0", {"other": (e, f)}, {})
    for wrong in [(e[:3], f), (e, f[:3]), (e[:, :1], f)]:
        with pytest.raises(MismatchError, match="phi=0"):
            retrained(model, "t0", {MODULE: wrong}, {})
