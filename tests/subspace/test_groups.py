"""A subspace for each group of tasks in one layer: everything that works on a model works on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from builders import (
    MODULE,
    adapter,
    build,
    dense,
    frame,
    gauss,
    law,
    orthonormality,
    stored_dense,
    strangers,
    update,
    worst,
)
from sharespace import Share
from sharespace.errors import CorruptStoreError, MismatchError
from sharespace.report.study import study
from sharespace.serve.mixed.folded import with_updates
from sharespace.serve.mixed.stacks import Stack
from sharespace.store import verify
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.coefficients import Coefficients, Core, Factors, PerTask
from sharespace.subspace.layer import group_offsets
from sharespace.subspace.merge import merge, union
from sharespace.subspace.plan import storage
from sharespace.subspace.state import ShareModel, as_adapter, reconstruct, retrained
from sharespace.tuner.start import new_task
from store.reseal import reseal

N, D = 40, 32


def family(name: str, count: int, k: int, seed: int, rank: int = 2) -> list[Adapter]:
    left, right = frame(N, k, seed), frame(D, k, seed + 1)
    return [
        adapter(
            f"{name}{i}",
            LayerUpdate(
                (left @ gauss(seed + i, k, rank)).float(),
                (gauss(seed + 500 + i, rank, k) @ right.mT).float(),
            ),
        )
        for i in range(count)
    ]


def adapters() -> list[Adapter]:
    odd = adapter("odd", update(N, D, 3, 7))
    return [*family("a", 40, 2, 10), *family("b", 30, 2, 9000), odd]


BUDGET = 4 * (4 * (N + D) + 70 * 4 + 3 * (N + D) + 40)
"""Room for two subspaces of two directions, their cores, and the stranger's own SVD."""


@pytest.fixture(scope="module")
def model() -> ShareModel:
    return build(adapters(), budget=BUDGET)


def value(model: ShareModel, name: str) -> Coefficients:
    return model.tasks[name].coefficients[MODULE]


def test_each_family_has_its_own_subspace(model: ShareModel) -> None:
    layer = model.layers[MODULE]
    assert layer.groups == ((2, 2), (2, 2))
    assert layer.k == (4, 4)
    for part in layer.subspaces():
        assert orthonormality(part.left_basis) < 1e-5
        assert orthonormality(part.right_basis) < 1e-5
    assert {v.offset for n in ("a0", "a39") if isinstance(v := value(model, n), Core)} == {(0, 0)}
    assert {v.offset for n in ("b0", "b29") if isinstance(v := value(model, n), Core)} == {(2, 2)}
    assert isinstance(value(model, "odd"), PerTask)
    assert worst(model, adapters()) < 1e-5


def test_their_bytes_are_those_of_their_own_cores(model: ShareModel) -> None:
    assert value(model, "a0").nbytes == value(model, "b0").nbytes == 4 * 2 * 2
    assert Share(model).fidelity().bytes.basis == 4 * 4 * (N + D)


def test_what_plan_counts(model: ShareModel) -> None:
    found = storage(model)
    assert (found.updates, found.per_task, found.leading) == (71, 1, 0)
    assert (found.grouped_modules, found.subspaces) == (1, 2)


def test_save_and_load_is_bit_identical(model: ShareModel, tmp_path: Path) -> None:
    Share(model).save(tmp_path / "m.share")
    loaded = Share.load(tmp_path / "m.share").model
    assert loaded.layers[MODULE].groups == model.layers[MODULE].groups
    for name in model.tasks:
        found, wanted = value(loaded, name), value(model, name)
        assert found.nbytes == wanted.nbytes
        assert getattr(found, "offset", None) == getattr(wanted, "offset", None)
        difference = stored_dense(loaded, name) - stored_dense(model, name)
        assert not difference.any()
    assert verify(tmp_path / "m.share").ok
    assert schema_version(tmp_path / "m.share") == 2


def schema_version(store: Path) -> int:
    head = json.loads((store / "share.json").read_text())
    found: int = json.loads((store / head["current"]).read_text())["schema_version"]
    return found


def test_one_subspace_is_still_written_in_the_first_schema(tmp_path: Path) -> None:
    Share(build(strangers(2, N, D), 2)).save(tmp_path / "m.share")
    assert schema_version(tmp_path / "m.share") == 1


def test_verify_looks_at_every_subspace(model: ShareModel, tmp_path: Path) -> None:
    layer = model.layers[MODULE]
    skewed = layer.left_basis.clone()
    skewed[:, 3] += skewed[:, 2]
    damaged = model.with_layers({MODULE: replace(layer, left_basis=skewed)})
    Share(damaged).save(tmp_path / "m.share")
    assert [f.status for f in verify(tmp_path / "m.share").damaged] == ["not orthonormal"]


def test_coefficients_that_begin_nowhere_are_refused(model: ShareModel, tmp_path: Path) -> None:
    task = model.tasks["b0"]
    found = value(model, "b0")
    assert isinstance(found, Core)
    wrong = replace(task, coefficients={MODULE: replace(found, offset=(1, 2))})
    with pytest.raises(MismatchError, match="where no subspace begins"):
        Share(model.with_tasks([wrong])).save(tmp_path / "m.share")
    assert not (tmp_path / "m.share" / "share.json").exists()


def test_a_stored_begin_that_is_none_is_refused(model: ShareModel, tmp_path: Path) -> None:
    """A task's file in a layer whose manifest says that it has one subspace."""
    Share(model.with_tasks([model.tasks["b0"]])).save(tmp_path / "m.share")

    def forget(manifest: dict[str, object]) -> None:
        layers = manifest["layers"]
        assert isinstance(layers, list)
        del layers[0]["parts"]

    reseal(tmp_path / "m.share", forget)
    with pytest.raises(CorruptStoreError, match="where no subspace begins"):
        Share.load(tmp_path / "m.share").task("b0")


def test_tasks_come_back_at_the_rank_they_have(model: ShareModel) -> None:
    for name, task in model.tasks.items():
        found = reconstruct(model, name)[MODULE]
        torch.testing.assert_close(dense(found), stored_dense(model, name), rtol=1e-5, atol=1e-5)
        assert as_adapter(model, task).ranks[MODULE] == found.up.shape[1] <= 3


def test_rows_of_a_mixed_batch_get_their_own(model: ShareModel) -> None:
    names = list(model.tasks)
    stack = Stack.empty(model.layers[MODULE], len(names) + 1, torch.float32, "cpu")
    for slot, name in enumerate(names, 1):
        stack.put(slot, value(model, name))
    x, module = torch.randn(len(names), D), nn.Linear(D, N)
    slots = torch.arange(1, len(names) + 1)
    found = with_updates(module, stack, x, slots, dict(stack.per_task), module(x))
    for row, name in enumerate(names):
        wanted = module(x[row]).double() + stored_dense(model, name) @ x[row].double()
        torch.testing.assert_close(found[row].double(), wanted, rtol=1e-4, atol=1e-4)


def test_cosines_are_those_of_the_updates(model: ShareModel) -> None:
    names = ["a0", "a1", "b0", "b1", "odd"]
    found = study(model, names)
    updates = [stored_dense(model, n).flatten() for n in names]
    for i, one in enumerate(updates):
        for j, two in enumerate(updates):
            wanted = float(one @ two / (one.norm() * two.norm()))
            assert float(found.cosines[i, j]) == pytest.approx(wanted, abs=1e-5)


def test_a_newcomer_joins_its_family(model: ShareModel) -> None:
    new = family("b", 31, 2, 9000)[-1]
    grown = merge(model, [new])
    assert len(grown.layers[MODULE].groups) == 2
    found, old = value(grown, "b30"), value(grown, "b0")
    assert isinstance(found, Core)
    assert isinstance(old, Core)
    assert found.offset == old.offset
    assert worst(grown, [*adapters(), new]) < 0.05


def test_merged_into_a_model_without_a_budget_nothing_is_lost(model: ShareModel) -> None:
    both = union(build(strangers(2, N, D), variance=1.0), model)
    assert both.layers[MODULE].groups == ()
    for name in model.tasks:
        torch.testing.assert_close(
            stored_dense(both, name), stored_dense(model, name), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_in_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    made = build(adapters(), budget=BUDGET * dtype.itemsize // 4, dtype=dtype)
    assert len(made.layers[MODULE].groups) == 2
    Share(made).save(tmp_path / "m.share")
    assert verify(tmp_path / "m.share").ok
    assert worst(made, adapters()) < 2e-3


def test_other_coefficients_in_the_familys_own_directions(model: ShareModel) -> None:
    pair = gauss(1, 2, 1).float(), gauss(2, 2, 1).float()
    changed = retrained(model, "b0", {MODULE: pair}, {})
    found = value(changed, "b0")
    assert isinstance(found, Factors)
    assert found.offset == (2, 2)
    part = model.layers[MODULE].subspaces()[1]
    wanted = part.left_basis @ pair[0] @ (part.right_basis @ pair[1]).mT
    torch.testing.assert_close(stored_dense(changed, "b0").float(), wanted)
    assert changed.tasks["b0"].ledger.bounds.max() < 1e-5


def test_other_coefficients_in_all_directions(model: ShareModel) -> None:
    """As a fine-tuning makes them, which may use every subspace."""
    layer = model.layers[MODULE]
    pair = gauss(1, 4, 2).float(), gauss(2, 4, 2).float()
    changed = retrained(model, "b0", {MODULE: pair}, {})
    found = value(changed, "b0")
    assert not isinstance(found, PerTask)
    assert found.offset == (0, 0)
    assert found.subspace_in(layer) is None
    wanted = layer.left_basis @ pair[0] @ (layer.right_basis @ pair[1]).mT
    torch.testing.assert_close(stored_dense(changed, "b0").float(), wanted)


SIZES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=4)


@law()
@given(parts=SIZES, data=st.data(), p=st.integers(1, 3), core=st.booleans())
def test_coefficients_of_a_part_and_back(
    parts: Sequence[tuple[int, int]], data: st.DataObject, p: int, core: bool
) -> None:
    number = data.draw(st.integers(0, len(parts) - 1))
    whole = sum(k for k, _ in parts), sum(k for _, k in parts)
    left, right = parts[number]
    mine: Factors | Core = Factors(gauss(1, left, p), gauss(2, right, p))
    if core:
        mine = Core(gauss(3, left, right))
    found = mine.placed(group_offsets(parts)[number], whole)
    assert isinstance(found, Factors | Core)
    assert found.nbytes == mine.nbytes
    assert found.used == mine.used
    for one, two in zip(found.within(parts[number]).tensors, mine.tensors, strict=True):
        assert torch.equal(one, two)


def _many_families() -> list[Adapter]:
    """In modules of 8 x 8, so that their directions together are more than there are."""
    made = []
    for number in range(6):
        left, right = frame(8, 2, 50 * number), frame(8, 2, 50 * number + 1)
        for i in range(60):
            up, down = gauss(997 * number + i, 2, 2), gauss(887 * number + i + 500, 2, 2)
            pair = LayerUpdate((left @ up).float(), (down @ right.mT).float())
            made.append(adapter(f"f{number}-{i}", pair))
    return made


def test_more_directions_than_the_side_has(tmp_path: Path) -> None:
    members = _many_families()
    made = build(members, budget=4 * (12 * 16 + 360 * 4) + 400)
    layer = made.layers[MODULE]
    assert min(layer.k) > 8
    assert worst(made, members) < 0.1
    Share(made).save(tmp_path / "m.share")
    assert verify(tmp_path / "m.share").ok
    one, two = (stored_dense(made, name).flatten() for name in ("f0-0", "f1-0"))
    cosine = float(one @ two / (one.norm() * two.norm()))
    assert float(study(made, ["f0-0", "f1-0"]).cosines[0, 1]) == pytest.approx(cosine, abs=1e-5)
    assert new_task(layer, 2, 2, 0).left_temporary.shape == (8, 0)
    pair = gauss(1, layer.k[0], 2).float(), gauss(2, layer.k[1], 2).float()
    changed = retrained(made, "f1-0", {MODULE: pair}, {})
    wanted = layer.left_basis @ pair[0] @ (layer.right_basis @ pair[1]).mT
    torch.testing.assert_close(stored_dense(changed, "f1-0").float(), wanted)
    assert changed.tasks["f1-0"].ledger.bounds.max() < 1e-5
