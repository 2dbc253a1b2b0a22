"""Canonical form: exact, orthonormal, batched without a trace."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from builders import ROUNDING, Family, canonical, dense, dense_tasks, families, law, update
from sharespace.linalg import updates as module
from sharespace.linalg.updates import CanonicalUpdates, weights
from sharespace.subspace.adapter import LayerUpdate


@law()
@given(family=families(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_canonical_form_is_the_update(family: Family, dtype: torch.dtype) -> None:
    found = canonical(family.updates, dtype)
    limit = 10 * ROUNDING[dtype] if dtype == torch.float64 else 2e-6
    for given_update, back in zip(family.updates, dense_tasks(found), strict=True):
        wanted = dense(given_update)
        size = float(given_update.up.double().norm() * given_update.down.double().norm())
        assert float((wanted - back).norm()) <= limit * size


@law()
@given(family=families())
def test_blocks_are_orthonormal_and_sigma_descends(family: Family) -> None:
    found = canonical(family.updates)
    for i in range(len(family.updates)):
        one = found.select([i])
        eye = torch.eye(one.ranks[0]).double()
        for side in (one.left, one.right):
            torch.testing.assert_close(side.mT @ side, eye, atol=1e-12, rtol=0)
        assert bool((one.sigma[:-1] >= one.sigma[1:]).all())
        assert bool((one.sigma >= 0).all())
        assert one.ranks[0] == min(family.n, family.d, family.updates[i].up.shape[1])


@law()
@given(family=families())
def test_norms_are_frobenius_norms(family: Family) -> None:
    found = canonical(family.updates)
    for norm, one in zip(found.norms.tolist(), family.updates, strict=True):
        size = float(one.up.double().norm() * one.down.double().norm())
        assert norm == pytest.approx(float(dense(one).norm()), abs=1e-12 * size)


def test_blocks_and_rows_are_inverse_also_for_mixed_ranks_and_no_columns() -> None:
    for ranks in ((1, 3, 2), (2, 2), (3,)):
        found = canonical([update(6, 5, r, r) for r in ranks])
        for rows in (torch.randn(sum(ranks), 4), torch.randn(sum(ranks)), found.left.mT[:, :0]):
            blocks = found.blocks(rows)
            assert blocks.shape == (len(ranks), max(ranks), *rows.shape[1:])
            assert torch.equal(found.rows(blocks), rows)


def test_padding_is_zero() -> None:
    found = canonical([update(6, 5, 1), update(6, 5, 3)])
    assert float(found.blocks(found.sigma)[0, 1:].abs().sum()) == 0


def test_flipped_is_the_transposed_update() -> None:
    found = canonical([update(6, 5, 2)])
    torch.testing.assert_close(dense_tasks(found.flipped)[0], dense_tasks(found)[0].mT)


def test_batches_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [update(9, 7, r, i) for i, r in enumerate((2, 3, 2, 2, 3, 1))]
    together = canonical(pairs, torch.float32)
    monkeypatch.setattr(module, "_BATCH_NUMBERS", 1)
    one_by_one = canonical(pairs, torch.float32)
    assert together.ranks == one_by_one.ranks
    for a, b in zip(dense_tasks(together), dense_tasks(one_by_one), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("tasks", [1, 2, 100])
def test_slices_are_all_tasks_in_order(monkeypatch: pytest.MonkeyPatch, tasks: int) -> None:
    found = canonical([update(6, 5, r, r) for r in (1, 2, 3, 1, 4)])
    monkeypatch.setattr(module, "SLICE_TASKS", tasks)
    monkeypatch.setattr(module, "SLICE_NUMBERS", 50)
    places, parts = zip(*found.slices(), strict=True)
    assert [i for place in places for i in range(5)[place]] == list(range(5))
    dense = [task for part in parts for task in dense_tasks(part)]
    for a, b in zip(dense, dense_tasks(found), strict=True):
        assert torch.equal(a, b)


def test_select_takes_tasks_in_the_order_asked() -> None:
    found = canonical([update(6, 5, r, r) for r in (1, 2, 3)])
    picked = found.select([2, 0])
    assert picked.ranks == (3, 1)
    torch.testing.assert_close(dense_tasks(picked)[1], dense_tasks(found)[0])


def test_ill_conditioned_factors_keep_float32_accuracy() -> None:
    """Condition 1e6 between B's columns: Cholesky-QR would fail here."""
    base = update(30, 20, 4, 1, dtype=torch.float64)
    scale = torch.logspace(0, -6, 4, dtype=torch.float64)
    found = LayerUpdate((base.up * scale).float(), (base.down / scale[:, None]).float())
    back = dense_tasks(canonical([found], torch.float32))[0]
    assert float((back - dense(found)).norm()) <= 3e-6 * float(dense(found).norm())


def test_weights_are_inverse_norms_and_zero_for_nothing() -> None:
    found: Tensor = weights(torch.tensor([2.0, 0.0, 1e-200], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.5, 0.0, 1e200])


def test_an_update_of_rank_zero_is_nothing() -> None:
    found: CanonicalUpdates = canonical(
        [LayerUpdate(torch.zeros(4, 0), torch.zeros(0, 3)), update(4, 3, 1)]
    )
    assert found.ranks == (0, 1)
    assert float(found.norms[0]) == 0
