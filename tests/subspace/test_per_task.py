"""Own SVDs: exact truncation, balanced, honest about what they lose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import canonical, dense, law, update
from sharespace.subspace.adapter import ModuleShape
from sharespace.subspace.build_budgeted import own_svd, per_task_layer
from sharespace.subspace.coefficients import PerTask


@law()
@given(
    seed=st.integers(0, 999),
    keep=st.integers(0, 5),
    stored=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_a_private_task_is_its_truncated_svd(seed: int, keep: int, stored: torch.dtype) -> None:
    tasks = [update(9, 7, r, seed + r, dtype=torch.float64) for r in (2, 5)]
    shape = ModuleShape(9, 7)
    layer, found = per_task_layer(shape, canonical(tasks), [min(keep, 2), keep], stored)
    assert layer.k == (0, 0)
    for i, (task, rank) in enumerate(zip(tasks, (min(keep, 2), keep), strict=True)):
        value = found.coefficients[i]
        assert isinstance(value, PerTask)
        assert value.left.shape == (9, rank)
        whole = value.left.double() @ value.right.double().mT
        error = float((dense(task) - whole).norm())
        best = float(torch.linalg.svdvals(dense(task))[rank:].norm())
        assert best - 1e-12 <= error <= best + 40 * torch.finfo(stored).eps
        assert float(found.lost[i]) == pytest.approx(error, rel=1e-9, abs=1e-12)


def test_both_sides_are_of_the_same_size() -> None:
    value = own_svd(canonical([update(9, 7, 3, norm=100.0)]), 3, torch.float64)
    torch.testing.assert_close(value.left.mT @ value.left, value.right.mT @ value.right)
