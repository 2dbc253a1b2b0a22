"""Enlarging a basis takes only what is new; errors between frames agree with dense arithmetic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from builders import (
    Family,
    canonical,
    dense_tasks,
    families,
    frame,
    gauss,
    law,
    orthonormality,
    update,
)
from sharespace.linalg.frames import (
    FrameChange,
    FramedTasks,
    NewDirections,
    errors,
    frame_difference,
    framed_coefficients,
    framed_updates,
    in_enlarged_bases,
)
from sharespace.linalg.updates import CanonicalUpdates

SEEDS = st.integers(0, 999)


def new_directions(basis: Tensor, frame: Tensor, dropped: float) -> Tensor:
    return NewDirections.of(basis, frame).beyond(dropped)


def _dense(framed: FramedTasks) -> list[Tensor]:
    return [framed.left @ c @ framed.right.mT for c in dense_tasks(framed.core)]


@law()
@given(seed=SEEDS, k=st.integers(0, 6), inside=st.integers(0, 3), outside=st.integers(0, 3))
def test_new_directions_complete_the_span_and_no_more(
    seed: int, k: int, inside: int, outside: int
) -> None:
    basis = frame(12, k, seed)
    columns = torch.cat([basis @ gauss(seed + 1, k, inside), gauss(seed + 2, 12, outside)], dim=1)
    found = new_directions(basis, columns, 1e-24)
    assert found.shape == (12, outside)
    both = torch.cat([basis, found], dim=1)
    assert orthonormality(both) <= 1e-12
    assert float((columns - both @ (both.mT @ columns)).norm()) <= 1e-10


def test_new_directions_stop_at_the_side() -> None:
    assert new_directions(frame(5, 4), gauss(1, 5, 9), 0.0).shape == (5, 1)
    assert new_directions(frame(5, 5), gauss(1, 5, 9), 0.0).shape == (5, 0)


def test_directions_of_rounding_are_dropped_only_together() -> None:
    columns = frame(9, 4)[:, 1:] * torch.tensor([1e-3, 1e-7, 1e-7]).double()
    basis = frame(9, 4)[:, :1]
    assert new_directions(basis, columns, 2.5e-14).shape[1] == 1
    assert new_directions(basis, columns, 1.5e-14).shape[1] == 2


@law()
@given(seed=SEEDS, ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_framed_updates_are_the_updates(seed: int, ranks: list[int]) -> None:
    updates = canonical([update(9, 7, r, seed + i) for i, r in enumerate(ranks)])
    framed = framed_updates(updates)
    assert orthonormality(framed.left) <= 1e-12
    for found, wanted in zip(_dense(framed), dense_tasks(updates), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_framed_coefficients_are_the_stored_tasks_whatever_the_cast_did(dtype: torch.dtype) -> None:
    left, right = frame(9, 4).to(dtype), frame(8, 3, 1).to(dtype)
    pairs = [(gauss(1, 4, 2), gauss(2, 3, 2)), (gauss(3, 4, 3), gauss(4, 3, 3))]
    framed = framed_coefficients(left, right, pairs)
    assert orthonormality(framed.left) <= 1e-12
    for found, (e, f) in zip(_dense(framed), pairs, strict=True):
        torch.testing.assert_close(found, left.double() @ e @ f.mT @ right.double().mT)


def test_framed_coefficients_of_no_tasks() -> None:
    framed = framed_coefficients(frame(9, 4), frame(8, 3), [])
    assert framed.core.ranks == ()
    assert (framed.core.left.shape, framed.core.right.shape) == ((4, 0), (3, 0))


@law()
@given(seed=SEEDS)
def test_the_signs_of_the_old_basis_are_kept(seed: int) -> None:
    """QR flips signs: without the correction old tasks came out wrong in 86 % of trials."""
    left, right = frame(9, 4, seed), frame(8, 3, seed + 1)
    framed = framed_coefficients(left, right, [(gauss(1, 4, 2), gauss(2, 3, 2))])
    torch.testing.assert_close(framed.left, left, rtol=0, atol=1e-13)
    torch.testing.assert_close(framed.right, right, rtol=0, atol=1e-13)


@law()
@given(seed=SEEDS, p=st.sampled_from([None, 1, 2]))
def test_weighed_frames_carry_the_energy_of_the_leading_directions(
    seed: int, p: int | None
) -> None:
    tasks = [update(9, 7, r, seed + r, norm=10.0**r, dtype=torch.float64) for r in (1, 3)]
    updates = canonical(tasks)
    weights = torch.tensor([0.5, 2.0], dtype=torch.float64)
    left, right = framed_updates(updates).weighed(weights, p)
    wanted = torch.zeros(9, 9, dtype=torch.float64)
    for i, weight in enumerate(weights.tolist()):
        one = updates.select([i])
        scaled = weight * one.left[:, :p] * one.sigma[:p]
        wanted += scaled @ scaled.mT
    torch.testing.assert_close(left @ left.mT, wanted, rtol=1e-9, atol=1e-9)
    assert float(right.square().sum()) == pytest.approx(float(wanted.trace()))


def test_weighed_frames_have_no_noise_of_missing_ranks() -> None:
    """The eigh of a Gram has noise of sqrt(eps); a merge in float64 took it for directions."""
    deficient = update(20, 15, 2, 1, dtype=torch.float64)
    wide = canonical([type(deficient)(deficient.up @ gauss(1, 2, 6), gauss(2, 6, 15))] * 2)
    left, _ = framed_updates(wide).weighed(1 / wide.norms)
    assert float(torch.linalg.svdvals(left)[2]) <= 1e-14


def test_both_sets_of_tasks_are_put_in_one_frame() -> None:
    one = canonical([update(9, 7, 2, 1, dtype=torch.float64)])
    two = canonical([update(9, 7, 3, 2, dtype=torch.float64)])
    left, right = (
        torch.linalg.qr(torch.cat([a, b], dim=1))[0]
        for a, b in ((one.left, two.left), (one.right, two.right))
    )
    both = in_enlarged_bases(framed_updates(one), framed_updates(two), left, right)
    wanted = [*dense_tasks(one), *dense_tasks(two)]
    for found, dense in zip(_dense(both), wanted, strict=True):
        torch.testing.assert_close(found, dense, rtol=0, atol=1e-12)


def _inside(updates: CanonicalUpdates, left: Tensor, right: Tensor) -> list[Tensor]:
    """The updates, of m x m', in frames."""
    return [left @ task @ right.mT for task in dense_tasks(updates)]


@law()
@given(seed=st.integers(0, 999), m=st.integers(1, 5), k=st.integers(0, 5), p=st.integers(0, 4))
def test_differences_are_what_dense_arithmetic_says(seed: int, m: int, k: int, p: int) -> None:
    old = frame(9, m, seed), frame(8, m, seed + 1)
    new = gauss(seed, 9, k), gauss(seed + 1, 8, k)
    tasks = canonical([update(m, m, r, seed + r, dtype=torch.float64) for r in (1, min(2, m))])
    e, f = gauss(seed + 2, 2, p * k).reshape(2, p, k), gauss(seed + 3, 2, p * k).reshape(2, p, k)
    lost, stray = FrameChange.of(old, new).differences(tasks, e, f)
    for i, before in enumerate(_inside(tasks, *old)):
        after = new[0] @ e[i].mT @ f[i] @ new[1].mT
        inside = old[0] @ old[0].mT @ after @ old[1] @ old[1].mT
        assert float(lost[i]) == pytest.approx(float((before - after).norm()), rel=1e-9, abs=1e-12)
        assert float(stray[i]) == pytest.approx(float((after - inside).norm()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_rounding_of_a_core_is_measured_and_not_lost_in_gram_matrices(seed: int) -> None:
    """The parts of the new frames outside of the old ones cancel over the rows of E and F."""
    new = frame(9, 5, seed), frame(8, 5, seed + 1)
    inner = frame(5, 2, seed + 2), frame(5, 2, seed + 3)
    old = new[0] @ inner[0], new[1] @ inner[1]
    tasks = canonical([update(2, 2, 2, seed, dtype=torch.float64)])
    core = inner[0] @ dense_tasks(tasks)[0] @ inner[1].mT
    rounded = core.float().double()
    change = FrameChange.of(old, new)
    lost, _ = change.differences(tasks, rounded.mT[None], torch.eye(5, dtype=torch.float64)[None])
    assert float(lost[0]) == pytest.approx(float((core - rounded).norm()), rel=1e-6)


K = st.tuples(st.integers(0, 6), st.integers(0, 6))
MANY = st.tuples(st.integers(0, 14), st.integers(0, 14))
"""Group subspaces side by side may have more directions than the side."""


@law()
@given(
    family=families(),
    k=K,
    cast=st.sampled_from([torch.float64, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_errors_agree_with_dense_arithmetic_in_any_frame(
    family: Family, k: tuple[int, int], cast: torch.dtype, seed: int
) -> None:
    updates = canonical(family.updates)
    left, right = frame(family.n, k[0], seed).to(cast), frame(family.d, k[1], seed).to(cast)
    shape = (len(family.updates), left.shape[1], right.shape[1])
    cores = gauss(seed, *shape)
    found = errors(updates, left, right, cores)
    for i, dense in enumerate(dense_tasks(updates)):
        wanted = float((dense - left.double() @ cores[i] @ right.double().mT).norm())
        assert float(found[i]) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_errors_are_not_lost_in_a_difference_of_squares(dtype: torch.dtype) -> None:
    """1e-5 in float32 and 1e-12 in float64, where differences of squares end at sqrt(eps)."""
    tiny = 1e-5 if dtype == torch.float32 else 1e-12
    updates = canonical([update(12, 9, 3, 1, dtype=torch.float64)], dtype)
    core = torch.diag(updates.sigma.double()).clone()
    core[0, 0] += tiny
    found = errors(updates, updates.left, updates.right, core[None])
    assert float(found[0]) == pytest.approx(tiny, rel=0.05)


@law()
@given(seed=st.integers(0, 999), k=MANY, other=MANY)
def test_frame_difference_agrees_with_dense_arithmetic(
    seed: int, k: tuple[int, int], other: tuple[int, int]
) -> None:
    old = (gauss(seed, 9, k[0]), gauss(seed + 1, 8, k[1]), gauss(seed + 2, 3, *k))
    new = (gauss(seed + 3, 9, other[0]), gauss(seed + 4, 8, other[1]), gauss(seed + 5, 3, *other))
    found = frame_difference(old, new)
    for i in range(3):
        before, after = (x[0] @ x[2][i] @ x[1].mT for x in (old, new))
        assert float(found[i]) == pytest.approx(float((before - after).norm()), rel=1e-9, abs=1e-12)
    assert float(frame_difference(old, old).max()) <= 1e-12 * float(old[2].norm() + 1) * 100
