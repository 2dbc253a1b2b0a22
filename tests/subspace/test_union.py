"""Two Share models as one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from builders import FULL, MODULE, adapter, build, stored_dense, strangers, update, worst
from sharespace.errors import MismatchError, OptionError, TaskExistsError
from sharespace.subspace.adapter import Adapter, BaseModel
from sharespace.subspace.coefficients import PerTask
from sharespace.subspace.merge import union, widened


def _named(prefix: str, seed: int, count: int = 2) -> list[Adapter]:
    return [a.with_name(prefix + a.name) for a in strangers(count, 14, 11, seed=seed)]


def test_a_task_in_both_and_two_bases_are_refused() -> None:
    one = build(_named("a", 1), 4)
    with pytest.raises(TaskExistsError):
        union(one, one)
    other = adapter("x", update(14, 11, 2), base=BaseModel("org/two"))
    based = adapter("y", update(14, 11, 2), base=BaseModel("org/one"))
    with pytest.raises(MismatchError):
        union(build([based], 2), build([other], 2))
    with pytest.raises(MismatchError):
        union(one, build([adapter("z", update(13, 11, 2))], 2))


def test_tasks_keep_their_ledgers_weights_and_all_they_carry() -> None:
    kept = {"head": torch.ones(3)}
    first = build(_named("a", 1), 2)
    second = build([adapter("b", update(14, 11, 3, 9, norm=5.0), kept=kept)], 2)
    both = union(first, second)
    before, after = second.tasks["b"].ledger, both.tasks["b"].ledger
    assert after.norms.tolist() == before.norms.tolist()
    assert after.events[: len(before.events)] == before.events
    assert bool((after.bounds >= before.bounds).all())
    assert both.tasks["b"].kept["head"] is kept["head"]
    assert list(both.tasks) == [*first.tasks, "b"]


def test_the_cap_of_the_first_holds_and_can_be_raised() -> None:
    first, second = build(_named("a", 1), 3), build(_named("b", 2), 3)
    assert union(first, second).layers[MODULE].k == (3, 3)
    wide = union(first, second, cap=FULL)
    assert min(wide.layers[MODULE].k) == 6
    for part in (first, second):
        for name in part.tasks:
            difference = stored_dense(wide, name) - stored_dense(part, name)
            assert float(difference.norm()) < 1e-5


def test_modules_that_only_the_second_has_come_along() -> None:
    first = build([adapter("a", {"x": update(9, 7, 2)})], FULL)
    tasks = [adapter("b", {"y": update(8, 6, 2), "x": update(9, 7, 2, 3)})]
    both = union(first, build(tasks, FULL))
    assert list(both.layers) == ["x", "y"]
    assert worst(both, tasks) < 1e-5
    assert set(both.tasks["a"].coefficients) == {"x"}


def test_private_updates_come_along_as_they_are() -> None:
    tasks = _named("b", 2)
    second = build(tasks, budget=4 * 25 * 3)
    value = second.tasks["bt0"].coefficients[MODULE]
    assert isinstance(value, PerTask)
    both = union(build(_named("a", 1), FULL), second)
    found = both.tasks["bt0"].coefficients[MODULE]
    assert isinstance(found, PerTask)
    assert torch.equal(found.left, value.left)
    base = BaseModel("acme/base")
    fresh = union(
        build([adapter("c", {"other": update(5, 5, 1)}, base=base)], FULL),
        replace(second, base=base),
    )
    assert isinstance(fresh.tasks["bt0"].coefficients[MODULE], PerTask)


def test_a_budget_of_the_first_is_kept() -> None:
    budget = 4 * 25 * 4
    both = union(build(_named("a", 1), budget=budget), build(_named("b", 2), FULL))
    values = [c.nbytes for t in both.tasks.values() for c in t.coefficients.values()]
    assert sum(values) + sum(x.nbytes for x in both.layers.values()) <= budget
    with pytest.raises(OptionError, match="budget"):
        union(build(_named("a", 1), budget=budget), build(_named("b", 2), FULL), cap=3)


def test_widening_changes_no_number() -> None:
    model = build(_named("a", 1), 3, dtype=torch.bfloat16)
    wide = widened(model, torch.float64)
    assert wide.dtype == torch.float64
    assert torch.equal(stored_dense(wide, "at0"), stored_dense(model, "at0"))


def test_a_union_with_an_empty_model() -> None:
    first, second = build(_named("a", 1), 3), build(_named("b", 2), 3)
    emptied = second.without_tasks(*second.tasks)
    assert list(union(first, emptied).tasks) == list(first.tasks)
    both = union(emptied, first, cap=FULL)
    for name in first.tasks:
        difference = stored_dense(both, name) - stored_dense(first, name)
        assert float(difference.norm()) < 1e-5
