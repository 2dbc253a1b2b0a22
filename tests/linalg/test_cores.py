"""Tasks in coordinates of a subspace, against dense arithmetic."""

from __future__ import annotations

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
    law,
    orthonormality,
    update,
)
from sharespace.linalg.updates import CanonicalUpdates, captured, core_svd, cores, seen_by
from sharespace.subspace.adapter import LayerUpdate

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
    for found, dense in zip(cores(left, sigma, right), wanted, strict=True):
        torch.testing.assert_close(found, dense, rtol=1e-9, atol=1e-9)
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
    for i, dense in enumerate(wanted):
        norm = float(updates.norms[i])
        assert float((e[i] @ f[i].mT - dense).norm()) <= 1e-12 * norm
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
