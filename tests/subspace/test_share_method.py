"""The paper's bases: singular vectors of the stacked factors, each side alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from builders import gauss, law, orthonormality
from sharespace.subspace.basis_methods.share_method import factor_bases

Pairs = list[tuple[Tensor, Tensor]]


def _pairs(seed: int, count: int = 4, r: int = 3) -> Pairs:
    return [(gauss(seed + i, 14, r), gauss(seed + i + 50, 11, r)) for i in range(count)]


def _projector(basis: Tensor) -> Tensor:
    return basis @ basis.mT


@law()
@given(seed=st.integers(0, 999), k=st.integers(1, 9))
def test_uncentred_bases_are_the_leading_singular_vectors_of_the_stacks(seed: int, k: int) -> None:
    pairs = _pairs(seed)
    bases = factor_bases(pairs, (k, k))
    for side, basis in enumerate((bases.left, bases.right)):
        u = torch.linalg.svd(torch.cat([p[side] for p in pairs], dim=1))[0][:, :k]
        torch.testing.assert_close(_projector(basis), _projector(u), rtol=0, atol=1e-8)


@law()
@given(seed=st.integers(0, 999), k=st.integers(1, 9))
def test_centred_bases_hold_the_mean_as_one_direction(seed: int, k: int) -> None:
    pairs = _pairs(seed)
    bases = factor_bases(pairs, (k, k), centred=True)
    assert bases.k == (k, k)
    for side, basis in enumerate((bases.left, bases.right)):
        stack = torch.cat([p[side] for p in pairs], dim=1)
        mean = stack.mean(dim=1, keepdim=True)
        assert float((mean - _projector(basis) @ mean).norm()) <= 1e-10
        u = torch.linalg.svd(stack - mean)[0][:, : k - 1]
        span = torch.linalg.qr(torch.cat([mean, u], dim=1))[0]
        torch.testing.assert_close(_projector(basis), _projector(span), rtol=0, atol=1e-7)
        assert orthonormality(basis) <= 1e-10


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("variance", [0.01, 0.6, 0.99, 1.0])
def test_variance_is_explained_on_each_side(centred: bool, variance: float) -> None:
    pairs = _pairs(3)
    bases = factor_bases(pairs, None, variance=variance, centred=centred)
    for side, basis in enumerate((bases.left, bases.right)):
        stack = torch.cat([p[side] for p in pairs], dim=1)
        rest = stack - stack.mean(dim=1, keepdim=True) if centred else stack
        kept = float((basis.mT @ rest).square().sum() / rest.square().sum())
        assert kept >= variance - 1e-9
        fewer = basis[:, :-2]
        assert float((fewer.mT @ rest).square().sum() / rest.square().sum()) < variance


def test_zero_factors_have_no_directions_and_no_centre() -> None:
    zero = [(torch.zeros(6, 2), torch.zeros(5, 2))]
    assert factor_bases(zero, (3, 3)).k == (0, 0)
    assert factor_bases(zero, (3, 3), centred=True).k == (0, 0)


def test_k_of_one_centred_is_the_mean_alone() -> None:
    pairs = _pairs(1)
    bases = factor_bases(pairs, (1, 1), centred=True)
    mean = torch.cat([p[0] for p in pairs], dim=1).mean(dim=1)
    torch.testing.assert_close(bases.left[:, 0], mean / mean.norm())
