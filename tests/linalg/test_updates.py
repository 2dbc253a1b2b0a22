"""Canonical form: exact, orthonormal, batched without a trace; cores against dense arithmetic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from builders import (
    ROUNDING,
    Family,
    canonical,
    dense,
    dense_tasks,
    families,
    frame,
    gauss,
    law,
    orthonormality,
    update,
)
from sharespace.linalg.updates import CanonicalUpdates, captured, core_svd, cores, seen_by, weights
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


def _wide(count: int, n: int, d: int, ranks: tuple[int, ...]) -> list[LayerUpdate]:
    return [
        LayerUpdate(gauss(i, n, r).float(), gauss(i + count, r, d).float())
        for i, r in zip(range(count), ranks * count, strict=False)
    ]


def test_batches_give_what_single_tasks_give() -> None:
    """Of two shapes, more numbers than a batch has."""
    pairs = _wide(60, 2600, 2500, (8, 9))
    batched = canonical(pairs, torch.float32)
    for i, pair in enumerate(pairs):
        single, task = canonical([pair], torch.float32), batched.select([i])
        torch.testing.assert_close(task.sigma, single.sigma, rtol=1e-5, atol=0)
        overlaps = (task.left.mT @ single.left) * (task.right.mT @ single.right)
        torch.testing.assert_close(overlaps.diagonal(), torch.ones(8 + i % 2), atol=1e-4, rtol=0)


def test_slices_are_all_tasks_in_order() -> None:
    """With sides so wide that 40 tasks are more than a slice."""
    updates = canonical(_wide(40, 3000, 3100, (1, 2, 3, 4)))
    places, parts = zip(*updates.slices(), strict=True)
    assert len(places) > 2
    assert [i for place in places for i in range(40)[place]] == list(range(40))
    assert tuple(r for part in parts for r in part.ranks) == updates.ranks
    for name in ("left", "sigma", "right"):
        whole = torch.cat([getattr(part, name) for part in parts], dim=-1)
        assert torch.equal(whole, getattr(updates, name))


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


K = st.tuples(st.integers(0, 6), st.integers(0, 6))


def _seen(
    family: Family, k: tuple[int, int]
) -> tuple[CanonicalUpdates, Tensor, Tensor, list[Tensor]]:
    updates = canonical(family.updates)
    left, right = frame(family.n, k[0], 1), frame(family.d, k[1], 2)
    wanted = [left.mT @ w @ right for w in dense_tasks(updates)]
    return updates, seen_by(updates, left), seen_by(updates.flipped, right), wanted


@law()
@given(family=families(), k=K, p=st.sampled_from([None, 0, 1, 2, 9]))
def test_cores_and_their_energies_agree_with_dense_arithmetic(
    family: Family, k: tuple[int, int], p: int | None
) -> None:
    updates, left, right, wanted = _seen(family, k)
    sigma = updates.blocks(updates.sigma)
    norms = updates.norms.square()
    for found, core in zip(cores(left, sigma, right), wanted, strict=True):
        torch.testing.assert_close(found, core, rtol=1e-9, atol=1e-9)
    energies = torch.stack([torch.linalg.svdvals(c)[:p].square().sum() for c in wanted])
    found = captured(left, sigma, right, p)
    assert bool(((found - energies).abs() <= 1e-11 * norms + 1e-300).all())
    svd = core_svd(left, sigma, right)
    rest = torch.stack([c.square().sum() for c in wanted]) - energies
    assert bool(((svd.tail(p) - rest).abs() <= 1e-11 * norms + 1e-300).all())


@law()
@given(family=families(), k=K)
def test_factors_multiply_to_the_core_and_are_balanced(family: Family, k: tuple[int, int]) -> None:
    updates, left, right, wanted = _seen(family, k)
    e, f = core_svd(left, updates.blocks(updates.sigma), right).factors()
    for i, core in enumerate(wanted):
        norm = float(updates.norms[i])
        assert float((e[i] @ f[i].mT - core).norm()) <= 1e-12 * norm
        if norm and min(k):
            torch.testing.assert_close(e[i].mT @ e[i], f[i].mT @ f[i], rtol=1e-6, atol=1e-9 * norm)


def test_truncated_factors_are_the_best_of_their_rank() -> None:
    updates = canonical([update(9, 8, 4, 1, dtype=torch.float64)])
    left, right = updates.blocks(updates.left.mT @ frame(9, 6)), frame(8, 5, 1)
    e, f = core_svd(left, updates.blocks(updates.sigma), seen_by(updates.flipped, right)).factors(2)
    core = frame(9, 6).mT @ dense_tasks(updates)[0] @ right
    u, s, vh = torch.linalg.svd(core)
    torch.testing.assert_close(e[0] @ f[0].mT, u[:, :2] * s[:2] @ vh[:2])


def test_a_zero_core_has_zero_left_and_orthonormal_right_factors() -> None:
    zero = LayerUpdate(torch.zeros(6, 3), update(6, 5, 3).down)
    updates = canonical([update(6, 5, 2, dtype=torch.float64), zero])
    left, right = seen_by(updates, frame(6, 4)), seen_by(updates.flipped, frame(5, 4))
    e, f = core_svd(left, updates.blocks(updates.sigma), right).factors()
    assert float(e[1].norm()) == 0
    assert orthonormality(f[1]) <= 1e-12


def test_one_side_without_directions_gives_empty_factors() -> None:
    updates = canonical([update(6, 5, 2, dtype=torch.float64)])
    left, right = seen_by(updates, frame(6, 0)), seen_by(updates.flipped, frame(5, 3))
    e, f = core_svd(left, updates.blocks(updates.sigma), right).factors()
    assert (e.shape, f.shape) == ((1, 0, 0), (1, 3, 0))
