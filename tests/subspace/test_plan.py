"""Plans and verdicts."""

from __future__ import annotations

import pytest
import torch

from builders import MODULE, adapter, build, relatives, strangers, update
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.plan import adapters_to_break_even, coefficients_only, plan
from sharespace.subspace.state import ShareModel


def _plan(adapters: list[Adapter], **options: float) -> tuple[ShareModel, str, str]:
    model = build(adapters, **options)  # type: ignore[arg-type]
    found = plan(model, adapters)
    return model, found.verdict, found.reason


def test_relatives_are_worth_it() -> None:
    _, verdict, reason = _plan(relatives(12, 40, 40, k=4, rank=4, noise=0.02), k=4)
    assert verdict == "worth it", reason


def test_strangers_are_not_worth_it_and_the_reason_says_why() -> None:
    _, verdict, reason = _plan(strangers(4, 60, 60, 4), k=4)
    assert verdict == "not worth it"
    assert "share nothing to speak of" in reason


def test_a_share_that_is_larger_than_its_adapters_is_not_worth_it() -> None:
    _, verdict, reason = _plan(relatives(2, 40, 40, k=8, rank=2), k=8)
    assert verdict == "not worth it"
    assert "no smaller than the adapters" in reason


def test_break_even_says_from_how_many_on() -> None:
    adapters = relatives(3, 40, 40, k=8, rank=4)
    model = build(adapters, 8)
    found = adapters_to_break_even(model, adapters)
    # Basis 8 * 80; a task 2 * 8 * 4 = 64 as its core of 8 * 8; an adapter 4 * 80.
    assert found == 640 // (320 - 64) + 1
    assert adapters_to_break_even(build(adapters, 3, p=3), adapters) == 1


def test_a_core_as_large_as_the_adapter_never_breaks_even() -> None:
    adapters = [adapter("a", update(4, 4, 4))]
    # Basis 32, core 16, adapter 32: two are of equal size, three are smaller.
    assert adapters_to_break_even(build(adapters, 4), adapters) == 3
    thin = [adapter("a", update(2, 2, 1)), adapter("b", update(2, 2, 1, 1))]
    assert adapters_to_break_even(build(thin, 2), thin) is None


def test_the_papers_count_is_coefficients_only() -> None:
    model = build(strangers(3, 30, 30, 2), 8, dtype=torch.float16)
    found = coefficients_only(model)
    # Three tasks of rank 2 need six directions a side; each keeps (6 + 6) * 2 numbers.
    assert found.parameters == 3 * 24
    assert found.nbytes == 2 * found.parameters


def test_private_modules_are_counted_and_not_part_of_the_papers_count() -> None:
    adapters = strangers(3, 30, 30, 2)
    model = build(adapters, budget=4 * 60 * 3)
    found = plan(model, adapters)
    assert found.per_task_modules == 1
    assert found.coefficients_only.parameters == 0
    assert found.dimensions == {MODULE: (0, 0)}


def test_the_expected_error_is_that_of_the_model() -> None:
    adapters = strangers(3)
    model = build(adapters, 3)
    found = plan(model, adapters)
    for name, task in found.fidelity.tasks.items():
        assert task.relative_error == pytest.approx(model.tasks[name].ledger.bound, rel=1e-4)
    assert found.bytes == found.fidelity.bytes
