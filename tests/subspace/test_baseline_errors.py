"""Errors of the baselines against dense arithmetic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import Family, canonical, dense_tasks, families, law, update
from sharespace.subspace.plan import inner_products, mean_errors, own_errors, random_errors

FLOOR = 1e-7
"""Of float64: differences of squares end at the square root of eps."""


@law()
@given(family=families(), chunk=st.sampled_from([1, 3, 1024]))
def test_inner_products_agree_with_dense_arithmetic(family: Family, chunk: int) -> None:
    updates = canonical(family.updates)
    tasks = dense_tasks(updates)
    found = inner_products(updates, chunk)
    for i, a in enumerate(tasks):
        for j, b in enumerate(tasks):
            wanted = float((a * b).sum())
            limit = 1e-12 * float(a.norm() * b.norm())
            assert float(found[i, j]) == pytest.approx(wanted, abs=limit, rel=0)


@law()
@given(family=families())
def test_mean_errors_agree_with_dense_arithmetic(family: Family) -> None:
    updates = canonical(family.updates)
    tasks = dense_tasks(updates)
    mean = torch.stack(tasks).mean(0)
    loudest = max(float(t.norm()) for t in tasks)
    for found, task in zip(mean_errors(updates).tolist(), tasks, strict=True):
        assert found == pytest.approx(float((task - mean).norm()), abs=FLOOR * loudest)


@law()
@given(family=families(), k=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_random_errors_agree_with_dense_arithmetic(family: Family, k: tuple[int, int]) -> None:
    updates = canonical(family.updates)
    k = min(k[0], family.n), min(k[1], family.d)
    generator = torch.Generator().manual_seed(5)
    left = torch.linalg.qr(torch.randn(family.n, k[0], generator=generator).double())[0]
    right = torch.linalg.qr(torch.randn(family.d, k[1], generator=generator).double())[0]
    for found, task in zip(
        random_errors(updates, k, 5).tolist(), dense_tasks(updates), strict=True
    ):
        wanted = task - left @ (left.mT @ task @ right) @ right.mT
        assert found == pytest.approx(float(wanted.norm()), abs=FLOOR * float(task.norm()))


def test_own_errors_are_the_tails() -> None:
    updates = canonical([update(9, 8, r, r) for r in (2, 4)])
    energies = updates.blocks(updates.sigma).square()
    found = own_errors(energies, [1, 3])
    for i, (rank, task) in enumerate(zip((1, 3), dense_tasks(updates), strict=True)):
        wanted = torch.linalg.svdvals(task)[rank:].norm()
        assert float(found[i]) == pytest.approx(float(wanted), rel=1e-9)
