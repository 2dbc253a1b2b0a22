"""The best coefficients in a stored subspace."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from builders import (
    DTYPES,
    MODULE,
    canonical,
    dense,
    frame,
    gauss,
    in_frame,
    law,
    update,
)
from sharespace.linalg.problem import UpdateProblem
from sharespace.linalg.updates import CanonicalUpdates, weights
from sharespace.subspace.adapter import LayerUpdate, ModuleShape
from sharespace.subspace.basis_method import LayerTasks, project
from sharespace.subspace.basis_methods import basis_method
from sharespace.subspace.coefficients import Core, Factors, compact
from sharespace.subspace.layer import LayerSubspace


def _layer(k: tuple[int, int] = (5, 4), dtype: torch.dtype = torch.float64) -> LayerSubspace:
    return LayerSubspace(ModuleShape(12, 9), frame(12, k[0]).to(dtype), frame(9, k[1], 1).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@law()
@given(seed=st.integers(0, 999), rank=st.integers(1, 6))
def test_no_other_core_is_nearer(dtype: torch.dtype, seed: int, rank: int) -> None:
    """Least squares in the stored frame, also where a cast made it not quite orthonormal."""
    layer, one = _layer(dtype=dtype), update(12, 9, rank, seed, dtype=torch.float64)
    found = project(canonical([one]), layer)
    value = found.coefficients[0]
    assert isinstance(value, Factors | Core)
    left, right = layer.left_basis.double(), layer.right_basis.double()
    best = torch.linalg.pinv(left) @ dense(one) @ torch.linalg.pinv(right).mT
    floor = float((dense(one) - left @ best @ right.mT).norm())
    error = float((dense(one) - in_frame(layer, value)).norm())
    slack = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert floor <= error * (1 + 1e-9) + 1e-12
    assert error <= floor + slack
    assert float(found.lost[0]) == pytest.approx(error, rel=1e-6, abs=1e-12)


@law()
@given(seed=st.integers(0, 999), p=st.integers(1, 6))
def test_truncation_to_p_is_the_best_of_rank_p(seed: int, p: int) -> None:
    layer, one = _layer(), update(12, 9, 6, seed, dtype=torch.float64)
    value = project(canonical([one]), layer, p).coefficients[0]
    assert isinstance(value, Factors | Core)
    core = layer.left_basis.mT @ dense(one) @ layer.right_basis
    u, s, vh = torch.linalg.svd(core, full_matrices=False)
    wanted = layer.left_basis @ (u[:, :p] * s[:p] @ vh[:p]) @ layer.right_basis.mT
    torch.testing.assert_close(in_frame(layer, value), wanted, rtol=0, atol=1e-12)


def _tasks(updates: CanonicalUpdates, pairs: list[tuple[Tensor, Tensor]]) -> LayerTasks:
    return LayerTasks(UpdateProblem(updates, weights(updates.norms)), pairs)


@law()
@given(
    seed=st.integers(0, 999),
    ranks=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1.0, 7.0]),
)
def test_both_projections_give_the_same_update(
    seed: int, ranks: list[int], dtype: torch.dtype, scale: float
) -> None:
    layer = _layer()
    tasks = [update(12, 9, r, seed + i, dtype=dtype) for i, r in enumerate(ranks)]
    pairs = [(u.up.double() * scale, u.down.double().mT / scale) for u in tasks]
    updates = canonical([LayerUpdate(b, a.mT) for b, a in pairs])
    one, two = (basis_method(m).project(_tasks(updates, pairs), layer) for m in ("joint", "share"))
    for first, second in zip(one.coefficients, two.coefficients, strict=True):
        assert isinstance(first, Factors | Core)
        assert isinstance(second, Factors | Core)
        torch.testing.assert_close(
            in_frame(layer, first), in_frame(layer, second), rtol=1e-9, atol=1e-12
        )


def test_the_papers_projection_keeps_the_split() -> None:
    layer, one = _layer(), update(12, 9, 2, 1, dtype=torch.float64)
    pair = (10 * one.up, one.down.mT / 10)
    tasks = _tasks(canonical([one]), [pair])
    value = basis_method("share").project(tasks, layer).coefficients[0]
    assert isinstance(value, Factors)
    torch.testing.assert_close(value.left, layer.left_basis.mT @ pair[0])
    torch.testing.assert_close(value.right, layer.right_basis.mT @ pair[1])


@law()
@given(k=st.tuples(st.integers(1, 6), st.integers(1, 6)), p=st.integers(1, 6))
def test_coefficients_are_never_larger_than_either_form(k: tuple[int, int], p: int) -> None:
    rank = min(p, *k)
    left, right = gauss(1, k[0], rank), gauss(2, k[1], rank)
    value = compact(left, right, torch.float32)
    numbers = value.nbytes // 4
    assert numbers <= (k[0] + k[1]) * rank
    whole = value.left @ value.right.mT if isinstance(value, Factors) else None
    matrix = value.matrix if isinstance(value, Core) else whole
    assert matrix is not None
    torch.testing.assert_close(matrix.double(), left @ right.mT, rtol=1e-5, atol=1e-5)


def test_stored_tensors_own_their_memory() -> None:
    left = gauss(1, 9, 4)[:, :2]
    value = compact(left, gauss(2, 9, 2), torch.float64)
    assert isinstance(value, Factors)
    assert value.left.is_contiguous()
    assert value.left.untyped_storage().nbytes() == value.left.nbytes
    assert MODULE
