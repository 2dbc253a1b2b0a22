"""Errors without n x d matrices, accurate far below the square root of eps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import Family, canonical, dense_tasks, families, frame, gauss, law, update
from sharespace.linalg.frames import errors, frame_difference

K = st.tuples(st.integers(0, 6), st.integers(0, 6))
MANY = st.tuples(st.integers(0, 14), st.integers(0, 14))
"""Families' subspaces side by side may have more directions than the side."""


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
