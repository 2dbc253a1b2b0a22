"""How updates are stored is counted as it is, with all bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import MODULE, adapter, build, gauss, law, relatives, strangers, update
from sharespace.subspace.adapter import ModuleShape
from sharespace.subspace.coefficients import Coefficients, Core, Factors, PerTask
from sharespace.subspace.fidelity import (
    ModelStorage,
    StorageKind,
    StorageTally,
    UpdateTally,
    storage_kind,
    tally_storage,
)
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.merge import merge
from sharespace.subspace.state import ShareModel

K = (4, 3)


def counted(model: ShareModel) -> ModelStorage:
    return tally_storage(model.tasks.values(), model.layers)


def padded(rows: int, columns: int) -> torch.Tensor:
    """K, with so many rows and columns that are not zero."""
    matrix = torch.zeros(K)
    matrix[:rows, :columns] = gauss(1, rows, columns)
    return matrix


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (Factors(gauss(1, 4, 2), gauss(2, 3, 2)), "whole"),
        (Factors(padded(3, 2)[:, :2], gauss(2, 3, 2)), "leading"),
        (Factors(torch.zeros(4, 2), gauss(2, 3, 2)), "nothing"),
        (Core(padded(4, 3)), "whole"),
        (Core(padded(4, 2)), "leading"),
        (Core(padded(0, 0)), "nothing"),
        (PerTask(gauss(1, 9, 2), gauss(2, 8, 2)), "per_task"),
        (PerTask(gauss(1, 9, 0), gauss(2, 8, 0)), "nothing"),
    ],
)
def test_each_way(value: Coefficients, wanted: StorageKind) -> None:
    layer = LayerSubspace(ModuleShape(9, 8), torch.zeros(9, 4), torch.zeros(8, 3))
    assert layer.k == K
    assert storage_kind(value, layer) == wanted


def test_what_a_merge_appends_leaves_old_tasks_with_the_leading_directions() -> None:
    model = merge(
        build([adapter("old", update(12, 10, 2, 1))], variance=1.0),
        [adapter("new", update(12, 10, 2, 2))],
    )
    found = counted(model)
    assert found.tasks["old"].leading.updates == 1
    assert found.tasks["new"].whole.updates == 1
    assert found.kinds["old"] == {MODULE: "leading"}


def test_a_budget_that_does_not_reach_is_not_called_private() -> None:
    """A private update of no columns keeps nothing."""
    modules = {
        m: update(30, 20, 2, i, norm=n) for i, (m, n) in enumerate((("a", 1.0), ("b", 1e-3)))
    }
    found = counted(build([adapter("t", modules)], budget=4 * 50))
    assert found.layers["a"] == StorageTally(per_task=UpdateTally(1, 200))
    assert found.layers["b"] == StorageTally(nothing=UpdateTally(1, 0))
    assert found.total.inside == UpdateTally()


@given(st.integers(1, 6), st.integers(0, 3), st.integers(100, 20_000))
@law(20)
def test_updates_and_bytes_add_up_to_those_of_the_model(
    related: int, odd: int, budget: int
) -> None:
    adapters = [*relatives(related, 24, 20, k=3, rank=2), *strangers(odd, 24, 20, 2)]
    named = [adapter(f"{i}", a.layer(MODULE)) for i, a in enumerate(adapters)]
    model = build(named, budget=budget)
    found = counted(model)
    values = [c for t in model.tasks.values() for c in t.coefficients.values()]
    assert found.total.total == UpdateTally(len(values), sum(c.nbytes for c in values))
    assert sum(found.tasks.values(), StorageTally()) == found.total
    private = [c for c in values if isinstance(c, PerTask) and c.nbytes]
    assert found.total.per_task == UpdateTally(len(private), sum(c.nbytes for c in private))
