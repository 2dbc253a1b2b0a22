"""Laws of one build: bases, exactness, certificates, weights, invariances."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from builders import (
    DTYPES,
    FULL,
    KINDS,
    MODULE,
    ROUNDING,
    Family,
    absolute_errors,
    adapter,
    build,
    crossed,
    dense,
    families,
    frame,
    gauss,
    law,
    orthonormality,
    own_weighed_error,
    relative_errors,
    relatives,
    stored_dense,
    update,
    weighed_error,
    worst,
)
from sharespace.linalg.updates import weights
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.coefficients import Factors
from sharespace.subspace.fidelity import fidelity
from sharespace.subspace.state import ShareModel, as_adapter

K = st.sampled_from([1, 2, 3, 5, 8, FULL])
ALIKE = tuple(kind for kind in KINDS if kind not in ("loud", "quiet"))
"""Kinds of the same norm: method share drops what is tiny beside the rest."""


def _bases(model: ShareModel) -> list[Tensor]:
    layer = model.layers[MODULE]
    return [layer.left_basis, layer.right_basis]


@pytest.mark.parametrize(("method", "centred"), [("joint", 0), ("share", 0), ("share", 1)])
@law()
@given(family=families(dtypes=DTYPES), k=K, p=st.sampled_from([None, 1, 2, 50]))
def test_bases_are_orthonormal(
    method: str, centred: int, family: Family, k: int, p: int | None
) -> None:
    model = build(family.adapters, k, method=method, centred=bool(centred), p=p)
    for basis in _bases(model):
        assert orthonormality(basis) <= ROUNDING[family.dtype]
        assert basis.shape[1] <= min(k, basis.shape[0])


@law()
@given(family=families(), k=K)
def test_projecting_the_reconstruction_again_gives_the_same_coefficients(
    family: Family, k: int
) -> None:
    model = build(family.adapters, k)
    again = build([as_adapter(model, t) for t in model.tasks.values()], FULL)
    for name in model.tasks:
        first, second = stored_dense(model, name), stored_dense(again, name)
        scale = float(dense(family.adapters[int(name[1:])].layer(MODULE)).norm())
        assert float((first - second).norm()) <= ROUNDING[family.dtype] * scale


@pytest.mark.parametrize("method", ["joint", "share"])
@law()
@given(family=families(kinds=ALIKE))
def test_k_of_the_numerical_rank_reconstructs_exactly(method: str, family: Family) -> None:
    rank = _numerical_rank(family)
    model = build(family.adapters, rank, method=method)
    assert worst(model, family.adapters) <= ROUNDING[family.dtype]


@law()
@given(family=families(kinds=ALIKE))
def test_centred_reconstructs_exactly_with_one_more_direction(family: Family) -> None:
    model = build(family.adapters, _numerical_rank(family) + 1, method="share", centred=True)
    assert worst(model, family.adapters) <= ROUNDING[family.dtype]


def _numerical_rank(family: Family) -> int:
    """Of the stacked factors, each column of norm 1."""
    sides = [[u.up.double() for u in family.updates], [u.down.double().mT for u in family.updates]]
    stacks = [torch.cat([s / s.norm().clamp_min(1e-300) for s in side], dim=1) for side in sides]
    return max(int((torch.linalg.svdvals(s) > 1e-14).sum()) for s in stacks)


@law()
@given(family=families(), k=st.tuples(K, K), p=st.sampled_from([None, 1, 2, 5]))
def test_certificate_is_not_below_the_weighed_error(
    family: Family, k: tuple[int, int], p: int | None
) -> None:
    model = build(family.adapters, k, p=p)
    certificate = model.layers[MODULE].certificate
    assert certificate is not None
    floor = ROUNDING[family.dtype]
    assert weighed_error(model, family.adapters) <= certificate.bound * (1 + 1e-6) + floor


@law()
@given(family=families(tasks=(2, 6)), data=st.data())
def test_weighed_error_is_not_above_own_svds_of_as_many_columns(
    family: Family, data: st.DataObject
) -> None:
    columns = data.draw(st.integers(1, max(2, sum(u.up.shape[1] for u in family.updates))))
    assume(any(float(u.up.norm()) for u in family.updates))
    own = own_weighed_error(family.adapters, columns)
    model = build(family.adapters, columns)
    assert weighed_error(model, family.adapters) <= own * (1 + 1e-4) + 10 * ROUNDING[family.dtype]


@law()
@given(family=families(tasks=(2, 5)), k=st.integers(1, 5), loud=st.integers(0, 4))
def test_scaling_one_adapter_by_a_power_of_two_changes_no_error_at_all(
    family: Family, k: int, loud: int
) -> None:
    scaled = _scaled(family.adapters, loud % len(family.updates), 1024.0)
    before = relative_errors(build(family.adapters, k), family.adapters)
    assert relative_errors(build(scaled, k), scaled) == pytest.approx(before, rel=1e-9)


@law()
@given(seed=st.integers(0, 1000), loud=st.integers(0, 5))
def test_scaling_one_adapter_by_1000_leaves_the_errors_of_the_others(seed: int, loud: int) -> None:
    adapters = _relatives_with_a_gap(seed)
    scaled = _scaled(adapters, loud, 1000.0)
    before = relative_errors(build(adapters, 3), adapters)
    assert relative_errors(build(scaled, 3), scaled) == pytest.approx(before, rel=1e-6)


def _scaled(adapters: list[Adapter], which: int, factor: float) -> list[Adapter]:
    one = adapters[which].layer(MODULE)
    louder = adapter(f"t{which}", LayerUpdate(one.up, one.down, one.scaling * factor))
    return [louder if i == which else a for i, a in enumerate(adapters)]


def _relatives_with_a_gap(seed: int) -> list[Adapter]:
    """Six tasks in three strong common directions, and weak noise: a clear gap at k = 3."""
    return relatives(6, 14, 11, k=3, seed=seed, noise=0.02, dtype=torch.float64)


@law()
@given(seed=st.integers(0, 1000), k=st.sampled_from([3, FULL]))
def test_another_split_between_b_and_a_changes_no_task(seed: int, k: int) -> None:
    adapters = _relatives_with_a_gap(seed)
    mixed = [_split_anew(a, seed + i) for i, a in enumerate(adapters)]
    first, second = build(adapters, k), build(mixed, k)
    for name in first.tasks:
        difference = stored_dense(first, name) - stored_dense(second, name)
        assert float(difference.norm()) <= 1e-5 * float(stored_dense(first, name).norm())


def _split_anew(found: Adapter, seed: int) -> Adapter:
    """B M and M^-1 A, cond(M) = 10."""
    layer = found.layer(MODULE)
    r = layer.up.shape[1]
    mix = frame(r, r, seed) @ torch.diag(torch.logspace(0, 1, r).double()) @ frame(r, r, seed + 1)
    return adapter(found.name, LayerUpdate(layer.up @ mix, torch.linalg.solve(mix, layer.down)))


@law()
@given(seed=st.integers(0, 1000), k=st.sampled_from([3, FULL]), order=st.permutations(range(6)))
def test_the_order_of_the_tasks_changes_no_task(seed: int, k: int, order: list[int]) -> None:
    adapters = _relatives_with_a_gap(seed)
    first, second = build(adapters, k), build([adapters[i] for i in order], k)
    for name in first.tasks:
        difference = stored_dense(first, name) - stored_dense(second, name)
        assert float(difference.norm()) <= 1e-5 * float(stored_dense(first, name).norm())


@law()
@given(family=families(), variance=st.sampled_from([0.01, 0.5, 0.9, 0.999999, 1.0]))
def test_variance_is_two_sided_and_reached(family: Family, variance: float) -> None:
    model = build(family.adapters, variance=variance)
    tasks = [dense(u) for u in family.updates]
    norms = torch.tensor([float(t.norm()) for t in tasks], dtype=torch.float64)
    kept = torch.tensor(
        [float(stored_dense(model, f"t{i}").norm()) for i in range(len(tasks))],
        dtype=torch.float64,
    )
    square = weights(norms).square()
    total = float((square * norms.square()).sum())
    assert float((square * kept.square()).sum()) >= variance * total - 1e-5 * max(total, 1)


@law()
@given(family=families(), error=st.sampled_from([1e-6, 0.01, 0.3, 1.0]))
def test_error_rule_leaves_no_task_a_larger_error(family: Family, error: float) -> None:
    model = build(family.adapters, error=error)
    assert worst(model, family.adapters) <= error + ROUNDING[family.dtype]


@law()
@given(family=families(dtypes=DTYPES), k=K, p=st.sampled_from([None, 1, 2, 5]))
def test_measured_errors_agree_with_dense_arithmetic(family: Family, k: int, p: int | None) -> None:
    model = build(family.adapters, k, p=p)
    dense_errors = absolute_errors(model, family.adapters)
    kept = fidelity(model, family.adapters)
    for name, lost in dense_errors.items():
        norm = model.tasks[name].ledger.norm(MODULE)
        measured = kept.tasks[name].layers[MODULE].relative_error * norm
        recorded = float(model.tasks[name].ledger.truncations[0, 0])
        assert measured == pytest.approx(lost[MODULE], rel=1e-4, abs=2e-6 * norm)
        assert recorded == pytest.approx(lost[MODULE], rel=1e-4, abs=2e-6 * norm)
        assert recorded >= lost[MODULE] - 1e-14 * norm


@law()
@given(seed=st.integers(0, 100), k=st.integers(1, 6))
def test_nested_k_never_loses_more(seed: int, k: int) -> None:
    updates = [update(10, 8, 3, seed + i, dtype=torch.float64) for i in range(4)]
    adapters = [adapter(f"t{i}", u) for i, u in enumerate(updates)]
    errors = [weighed_error(build(adapters, j), adapters) for j in (k, k + 2)]
    assert all(b <= a * 1.01 + 1e-12 for a, b in pairwise(errors))


@law()
@given(family=families(kinds=("zero", "stranger")), k=K)
def test_a_zero_update_has_no_error_and_a_frame_to_train_from(family: Family, k: int) -> None:
    model = build(family.adapters, k)
    for name, value in ((n, t.coefficients[MODULE]) for n, t in model.tasks.items()):
        if model.tasks[name].ledger.norm(MODULE) == 0:
            assert float(stored_dense(model, name).norm()) == 0
            assert model.tasks[name].ledger.bound == 0
            if isinstance(value, Factors):
                assert orthonormality(value.right) <= ROUNDING[family.dtype]


def test_tasks_that_cross_are_not_all_lost() -> None:
    """HOSVD picks one pair of tasks left and the other right, and captures nothing."""
    adapters = [adapter(f"t{i}", u) for i, u in enumerate(crossed())]
    assert weighed_error(build(adapters, 1), adapters) <= own_weighed_error(adapters, 1) + 1e-9


def test_gauss_is_reproducible() -> None:
    assert torch.equal(gauss(3, 2, 2), gauss(3, 2, 2))
