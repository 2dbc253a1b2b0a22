"""A budgeted model has all kinds of storage in one layer, and everything works on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from builders import MODULE, adapter, build, dense, frame, gauss, stored_dense, strangers, update
from sharespace import Share
from sharespace.serve.mixed.folded import with_updates
from sharespace.serve.mixed.stacks import Stack
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.coefficients import Coefficients, PerTask
from sharespace.subspace.merge import merge, union
from sharespace.subspace.plan import plan
from sharespace.subspace.state import ShareModel, as_adapter, reconstruct

N, D = 40, 32


def _family(name: str, count: int, k: int, seed: int) -> list[Adapter]:
    left, right = frame(N, k, seed), frame(D, k, seed + 1)
    made = []
    for i in range(count):
        up = left @ gauss(seed + i, k, 2) + 0.01 * gauss(i, N, 2)
        down = gauss(seed + 500 + i, 2, k) @ right.mT
        made.append(adapter(f"{name}{i}", LayerUpdate(up.float(), down.float())))
    return made


def _adapters() -> list[Adapter]:
    odd = adapter("odd", update(N, D, 3, 7))
    return [*_family("a", 20, 2, 10), *_family("b", 15, 3, 9000), odd]


@pytest.fixture(scope="module")
def model() -> ShareModel:
    return build(_adapters(), budget=4 * ((N + D) * 8 + 36 * 12))


def _value(model: ShareModel, name: str) -> Coefficients:
    return model.tasks[name].coefficients[MODULE]


def test_it_has_all_kinds(model: ShareModel) -> None:
    k = model.layers[MODULE].k
    assert isinstance(_value(model, "odd"), PerTask)
    inside = [v for t in model.tasks if not isinstance(v := _value(model, t), PerTask)]
    assert any(v.used != k for v in inside)
    assert any(v.used == k for v in inside)


def test_plan_counts_them(model: ShareModel) -> None:
    found = plan(model, _adapters())
    assert found.budget == model.settings.budget
    assert found.per_task_modules == 0
    assert found.storage.updates == 36
    assert found.storage.per_task == found.storage.wholly_per_task >= 1
    assert 0 < found.storage.leading < 36
    assert found.storage.ranks[1] >= 2


def test_save_and_load_is_bit_identical(model: ShareModel, tmp_path: Path) -> None:
    Share(model).save(tmp_path / "m.share")
    loaded = Share.load(tmp_path / "m.share").model
    for name in model.tasks:
        torch.testing.assert_close(
            stored_dense(loaded, name), stored_dense(model, name), rtol=0, atol=0
        )
        assert _value(loaded, name).nbytes == _value(model, name).nbytes


def test_tasks_come_back_at_the_rank_they_have(model: ShareModel) -> None:
    for name, task in model.tasks.items():
        found = reconstruct(model, name)[MODULE]
        torch.testing.assert_close(dense(found), stored_dense(model, name), rtol=1e-5, atol=1e-5)
        rank = as_adapter(model, task).ranks[MODULE]
        assert rank == found.up.shape[1] <= 3


def test_rows_of_a_mixed_batch_get_their_own(model: ShareModel) -> None:
    names = list(model.tasks)
    stack = Stack.empty(model.layers[MODULE], len(names) + 1, torch.float32, "cpu")
    for slot, name in enumerate(names, 1):
        stack.put(slot, _value(model, name))
    assert stack.left.shape[1] <= 4  # not as wide as the bases
    x, module = torch.randn(len(names), D), nn.Linear(D, N)
    slots = torch.arange(1, len(names) + 1)
    private = dict(stack.per_task)
    found = with_updates(module, stack, x, slots, private, module(x))
    for row, name in enumerate(names):
        wanted = module(x[row]).double() + stored_dense(model, name) @ x[row].double()
        torch.testing.assert_close(found[row].double(), wanted, rtol=1e-4, atol=1e-4)


def test_merged_into_a_model_without_a_budget_nothing_is_lost(model: ShareModel) -> None:
    both = union(build(strangers(2, N, D), variance=1.0), model)
    for name in model.tasks:
        torch.testing.assert_close(
            stored_dense(both, name), stored_dense(model, name), rtol=1e-4, atol=1e-4
        )


def test_merges_one_after_the_other_stay_near_one_build(model: ShareModel) -> None:
    """Each merge knows the tasks as they are stored; what was lost before cannot come back."""
    adapters, budget = _adapters(), model.settings.budget
    assert budget is not None
    step = build(adapters[:6], budget=budget)
    for start in range(6, 36, 6):
        step = merge(step, adapters[start : start + 6])
    assert _lost(step, adapters) <= 2.0 * _lost(model, adapters)


def _lost(model: ShareModel, adapters: list[Adapter]) -> float:
    return sum(
        float((dense(a.layer(MODULE)) - stored_dense(model, a.name)).square().sum())
        / float(dense(a.layer(MODULE)).square().sum())
        for a in adapters
    )
