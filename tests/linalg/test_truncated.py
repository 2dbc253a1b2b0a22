"""Leading directions: the exact way, the iterative way, and where the rank ends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from builders import canonical, dense, frame, gauss, law, orthonormality, update
from sharespace.linalg.truncated import Leading, leading, orthonormal
from sharespace.linalg.updates import CanonicalUpdates, seen_by
from sharespace.subspace.adapter import LayerUpdate

ROUNDING = 1e-24


def _gains(updates: CanonicalUpdates) -> Tensor:
    return torch.diag_embed(updates.blocks(updates.sigma))


def _stack(found: Sequence[LayerUpdate]) -> Tensor:
    return torch.cat([dense(u) for u in found], dim=1)


def _energy(found: Leading, updates: Sequence[LayerUpdate]) -> float:
    return float((found.basis.double().mT @ _stack(updates)).square().sum())


def _flat(count: int, n: int, d: int, rank: int = 2, seed: int = 0) -> list[LayerUpdate]:
    """Independently trained: a flat spectrum, where a fixed number of iterations is not enough."""
    return [update(n, d, rank, seed + i, dtype=torch.float64) for i in range(count)]


def _check_leading(updates: list[LayerUpdate], k: int) -> None:
    found = canonical(updates)
    got = leading(found, _gains(found), k, dropped=ROUNDING)
    values = torch.linalg.svdvals(_stack(updates))[: min(k, *found.left.shape)].square()
    torch.testing.assert_close(got.energies, values, rtol=1e-9, atol=1e-12)
    assert _energy(got, updates) == pytest.approx(float(values.sum()), rel=1e-9)
    assert orthonormality(got.basis) <= 1e-12


@law()
@given(seed=st.integers(0, 999), k=st.integers(1, 12), count=st.integers(1, 12))
def test_the_svd_finds_the_leading_singular_vectors(seed: int, k: int, count: int) -> None:
    _check_leading(_flat(count, 16, 13, seed=seed), k)


@pytest.mark.parametrize("n", [195, 230], ids=["fewer rows", "fewer columns"])
@pytest.mark.parametrize("k", [45, 90, 500])
def test_the_gram_matrix_finds_the_leading_singular_vectors(n: int, k: int) -> None:
    """Of sides that are too large for the SVD and of a k that is too large to iterate."""
    _check_leading(_flat(70, n, 20, 3), k)


@law(15)
@given(seed=st.integers(0, 999), k=st.integers(1, 8), count=st.sampled_from([40, 60]))
def test_iteration_captures_nearly_all_of_a_flat_spectrum(seed: int, k: int, count: int) -> None:
    updates = _flat(count, 200, 20, 5, seed=seed)
    found = canonical(updates, torch.float32)
    got = leading(found, _gains(found), k, dropped=0.0)
    best = float(torch.linalg.svdvals(_stack(updates))[:k].square().sum())
    assert got.basis.shape == (200, k)
    assert orthonormality(got.basis) <= 1e-5
    assert _energy(got, updates) >= 0.98 * best
    assert float(got.energies.sum()) == pytest.approx(_energy(got, updates), rel=1e-4)


@law(15)
@given(seed=st.integers(0, 999), k=st.integers(1, 8), steps=st.integers(1, 3))
def test_iteration_never_captures_less_than_its_start(seed: int, k: int, steps: int) -> None:
    updates = _flat(40, 200, 20, 5, seed=seed)
    found = canonical(updates, torch.float32)
    start = frame(200, k, seed).float()
    known = start, seen_by(found, start)
    got = leading(found, _gains(found), k, dropped=0.0, start=known, max_iterations=steps)
    before = float((start.double().mT @ _stack(updates)).square().sum())
    assert _energy(got, updates) >= before * (1 - 1e-5)


def test_iteration_is_the_same_for_the_same_seed() -> None:
    found = canonical(_flat(40, 200, 20, 5), torch.float32)
    first, second = (
        leading(found, _gains(found), 5, dropped=0.0, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(first.basis, second.basis)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("n", "count", "k"),
    [(40, 12, 20), (25, 12, 20), (200, 70, 60), (230, 70, 60)],
    ids=["svd, more rows", "svd, more columns", "gram of rows", "gram of columns"],
)
def test_duplicates_have_the_rank_of_one(dtype: torch.dtype, n: int, count: int, k: int) -> None:
    """Rounding must not look like directions: not in float64 either, where it is 1e-26."""
    found = canonical([update(n, 25, 3, 1, dtype=torch.float64)] * count, dtype)
    got = leading(found, _gains(found), k, dropped=4e-12 if dtype == torch.float32 else 1e-26)
    assert got.basis.shape[1] == 3
    assert orthonormality(got.basis) <= 1e-5


def test_trailing_directions_go_only_while_their_energy_together_is_rounding() -> None:
    left, right = frame(20, 6), frame(15, 6, 1)
    sigma = torch.tensor([1.0, 1e-3, 1e-3, 1e-7, 1e-7, 1e-7], dtype=torch.float64)
    found = canonical([LayerUpdate(left * sigma, right.mT.contiguous())])
    for dropped, k in ((0.0, 6), (1.5e-14, 5), (3.5e-14, 3), (1.5e-6, 2), (2.5e-6, 1)):
        assert leading(found, _gains(found), 6, dropped=dropped).basis.shape[1] == k


def test_nothing_has_no_directions() -> None:
    zero = LayerUpdate(torch.zeros(5, 2), gauss(1, 2, 4).float())
    found = canonical([zero])
    assert leading(found, _gains(found), 3, dropped=0.0).basis.shape == (5, 0)
    assert leading(found, _gains(found), 0, dropped=0.0).seen.shape == (1, 2, 0)


def test_what_the_basis_sees_comes_with_it() -> None:
    found = canonical(_flat(4, 9, 8))
    got = leading(found, _gains(found), 3, dropped=0.0)
    torch.testing.assert_close(got.seen, found.blocks(found.left.mT @ got.basis))


@law()
@given(seed=st.integers(0, 999), k=st.integers(1, 6), more=st.integers(0, 3))
def test_orthonormal_leaves_orthonormal_columns_as_they_are(seed: int, k: int, more: int) -> None:
    """QR flips signs; without the correction old tasks come out wrong after a merge."""
    first = frame(9, k, seed)
    got = orthonormal(torch.cat([first, gauss(seed + 1, 9, more)], dim=1))
    torch.testing.assert_close(got[:, :k], first, atol=1e-13, rtol=0)
    assert orthonormality(got) <= 1e-13
