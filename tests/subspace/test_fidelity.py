"""Errors, bounds, bytes."""

from __future__ import annotations

import pytest
import torch

from builders import (
    MODULE,
    absolute_errors,
    adapter,
    build,
    relative_errors,
    strangers,
    update,
)
from sharespace.errors import TaskNotFoundError
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.fidelity import fidelity, measure, sizes
from sharespace.subspace.merge import merge


def _two_modules() -> list[Adapter]:
    return [
        adapter(
            f"t{i}",
            {"x": update(12, 9, 3, i, norm=1.0 + i), "y": update(8, 10, 4, i + 50, norm=2.0)},
            kept={"head": torch.zeros(5)},
        )
        for i in range(3)
    ]


def test_errors_of_a_task_are_over_all_its_modules() -> None:
    adapters = _two_modules()
    model = build(adapters, 3)
    found, wanted = fidelity(model, adapters), relative_errors(model, adapters)
    lost = absolute_errors(model, adapters)
    for name, task in found.tasks.items():
        assert task.relative_error == pytest.approx(wanted[name], rel=1e-5)
        norm = model.tasks[name].ledger.norm
        by_layer = {m: e / norm(m) for m, e in lost[name].items()}
        assert task.worst_layer == max(by_layer, key=lambda m: by_layer[m])
        assert task.worst_layer_error == pytest.approx(max(by_layer.values()), rel=1e-5)
        assert task.measured
        assert task.bound >= task.relative_error
    assert found.max_relative_error == pytest.approx(max(wanted.values()), rel=1e-5)
    assert found.mean_relative_error == pytest.approx(sum(wanted.values()) / 3, rel=1e-5)


def test_without_originals_errors_come_from_the_ledger() -> None:
    adapters = _two_modules()
    model = build(adapters, 3)
    ours, wanted = fidelity(model), relative_errors(model, adapters)
    for name, task in ours.tasks.items():
        assert task.measured
        assert task.relative_error == pytest.approx(wanted[name], rel=1e-4)


def test_after_a_merge_at_the_cap_errors_are_estimates_with_a_bound() -> None:
    adapters = _two_modules()
    model = merge(build(adapters[:2], 3), adapters[2:])
    ours, wanted = fidelity(model), relative_errors(model, adapters)
    assert not ours.tasks["t0"].measured
    assert ours.tasks["t2"].measured
    for name, task in ours.tasks.items():
        assert task.relative_error <= task.bound
        assert wanted[name] <= task.bound
    assert fidelity(model, adapters[:1]).tasks.keys() == {"t0"}
    assert fidelity(model, adapters[:1]).tasks["t0"].measured


def test_an_adapter_of_no_task_is_told() -> None:
    with pytest.raises(TaskNotFoundError, match=r"'x'.*'t0', 't1'"):
        fidelity(build(strangers(2), 2), [adapter("x", update(12, 9, 2))])


def test_a_module_that_the_task_never_had_is_not_measured() -> None:
    model = build(strangers(1), 2)
    again = adapter("t0", {MODULE: update(12, 9, 3, 0), "y": update(5, 5, 1)})
    assert measure(model, [again])["t0"].keys() == {MODULE}


def test_bytes_are_those_of_the_tensors() -> None:
    adapters = _two_modules()
    model = build(adapters, 2, dtype=torch.float16)
    found = sizes(model)
    assert found.basis == 2 * 2 * (12 + 9 + 8 + 10)
    coefficients = [c.nbytes for t in model.tasks.values() for c in t.coefficients.values()]
    assert found.coefficients == sum(coefficients)
    # Heads, and ledgers of float64: a norm and one event for each of two modules.
    assert found.other == 3 * (5 * 4 + 2 * 8 + 2 * 8)
    assert found.adapters == sum(a.nbytes for a in adapters)
    assert found.total == found.basis + found.coefficients + found.other


def test_certificates_are_by_module() -> None:
    model = build(_two_modules(), 3)
    found = fidelity(model).certificates
    assert found.keys() == {"x", "y"}
    assert all(value > 0 for value in found.values())


def test_no_tasks_have_no_error() -> None:
    model = build(strangers(1), 2).without_tasks("t0")
    found = fidelity(model)
    assert (found.mean_relative_error, found.max_relative_error) == (0.0, 0.0)
