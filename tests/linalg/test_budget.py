"""Spending bytes: sizes are the stored ones, curves are true, greedy is near the best."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import MODULE, adapter, build, dense_tasks, frame, law, problem, update
from sharespace.linalg.budget import Point, Sizes, own_profile, profile, refine, sizes, spend
from sharespace.linalg.joint import hosvd
from sharespace.subspace.adapter import LayerUpdate


@law()
@given(
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    k=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    p=st.sampled_from([None, 1, 3]),
    dtype=st.sampled_from([torch.float64, torch.float16]),
)
def test_sizes_are_the_bytes_that_are_stored(
    ranks: list[int], k: tuple[int, int], p: int | None, dtype: torch.dtype
) -> None:
    tasks = [update(9, 8, r, i) for i, r in enumerate(ranks)]
    model = build([adapter(f"t{i}", u) for i, u in enumerate(tasks)], k, p=p, dtype=dtype)
    layer = model.layers[MODULE]
    values = sum(t.coefficients[MODULE].nbytes for t in model.tasks.values())
    size = sizes(problem(tasks).updates, p, dtype.itemsize)
    assert size.coefficients(*layer.k) == values
    assert size.joint(*layer.k) == values + layer.nbytes
    assert int(size.joint_table(*layer.k)[-1, -1]) == size.joint(*layer.k)
    assert size.own(3) == 3 * 17 * dtype.itemsize


@pytest.mark.parametrize("p", [None, 1, 2])
def test_the_joint_curve_is_what_nested_bases_lose(p: int | None) -> None:
    found = problem([update(9, 7, 3, i, norm=i + 1.0, dtype=torch.float64) for i in range(4)], p)
    curve = profile(found, 4)
    bases = hosvd(found, (7, 7))
    for i, task in enumerate(dense_tasks(found.updates)):
        for k in range(1, 8):
            core = bases.left[:, :k].mT @ task @ bases.right[:, :k]
            kept = torch.linalg.svdvals(core)[:p].square().sum()
            wanted = float(task.square().sum() - kept)
            assert float(curve.shared_lost[i, k - 1]) == pytest.approx(wanted, abs=1e-9)


def test_a_faint_last_direction_counts_in_float32() -> None:
    """1e-4 of the norm is 1e-8 of the energy: below the rounding of a difference of squares."""
    tasks = [update(12, 12, 3, 5, dtype=torch.float64) for _ in range(4)]
    u, s, vh = torch.linalg.svd(tasks[0].up @ tasks[0].down)
    s = torch.tensor([1.0, 0.5, 1e-4], dtype=torch.float64)
    faint = type(tasks[0])(u[:, :3] * s, vh[:3])
    curve = profile(problem([faint] * 4, None, torch.float32), 4)
    assert float(curve.shared_lost[0, 1]) == pytest.approx(1e-8, rel=0.01)
    assert float(curve.shared_lost[0, 2]) == 0


def test_the_own_curve_is_the_sorted_tails_of_all_tasks() -> None:
    found = problem([update(9, 7, 3, i, norm=i + 1.0, dtype=torch.float64) for i in range(3)])
    profiled = own_profile(found.updates, 4)
    points = profiled.points(found.weights, 10**9)
    values = torch.cat([torch.linalg.svdvals(t / t.norm()) for t in dense_tasks(found.updates)])
    values = values.square().sort(descending=True).values
    assert [p.columns for p in points] == list(range(10))
    for point in points:
        assert point.lost == pytest.approx(float(values[point.columns :].sum()), abs=1e-12)
        ranks = profiled.own_ranks(found.weights, point.columns)
        assert sum(ranks) == point.columns


def test_points_end_at_the_budget() -> None:
    found = problem([update(9, 7, 3, i, dtype=torch.float64) for i in range(3)])
    assert all(p.nbytes <= 300 for p in profile(found, 4).points(found.weights, 300))
    assert [p.nbytes for p in profile(found, 4, 0).points(found.weights, 0)] == [0]


CURVES = st.lists(
    st.lists(
        st.tuples(st.integers(1, 20), st.floats(0.0, 1.0), st.booleans()), min_size=0, max_size=4
    ),
    min_size=1,
    max_size=3,
)


@law(40)
@given(curves=CURVES, budget=st.integers(0, 60))
def test_spending_fits_and_is_within_one_step_of_the_best(
    curves: list[list[tuple[int, float, bool]]], budget: int
) -> None:
    offers = [
        [Point(0, 1.0), *(Point(b, lost, k=int(j), columns=int(not j)) for b, lost, j in curve)]
        for curve in curves
    ]
    chosen = spend(offers, budget)
    assert sum(p.nbytes for p in chosen) <= budget
    assert all(p in offer for p, offer in zip(chosen, offers, strict=True))
    largest = max(p.nbytes for offer in offers for p in offer)
    best = min(
        sum(p.lost for p in points)
        for points in product(*offers)
        if sum(p.nbytes for p in points) <= max(budget - largest, 0)
    )
    assert sum(p.lost for p in chosen) <= best + 1e-12


@law(100)
@given(curves=CURVES, budget=st.integers(0, 60))
def test_spending_loses_no_more_than_own_svds_alone(
    curves: list[list[tuple[int, float, bool]]], budget: int
) -> None:
    own = [
        [Point(0, 1.0), *(Point(b, lost, columns=1) for b, lost, joint in curve if not joint)]
        for curve in curves
    ]
    both = [
        [*offer, *(Point(b, lost, k=1) for b, lost, joint in curve if joint)]
        for offer, curve in zip(own, curves, strict=True)
    ]
    alone = sum(p.lost for p in spend(own, budget))
    assert sum(p.lost for p in spend(both, budget)) <= alone + 1e-12


def test_a_large_joint_step_does_not_crowd_out_own_svds() -> None:
    """The joint subspace has the better slope, and leaves no bytes for the other module."""
    shared = [Point(0, 1.0), Point(10, 0.55, columns=1), Point(11, 0.5, k=1)]
    other = [Point(0, 1.0), Point(10, 0.57, columns=1)]
    assert [p.nbytes for p in spend([shared, other], 20)] == [10, 10]


def test_spending_buys_no_bytes_for_nothing() -> None:
    offer = [Point(0, 1.0), Point(10, 0.0, k=1), Point(90, 0.0, columns=9)]
    assert spend([offer], 100) == [offer[1]]


def test_refining_spends_on_the_side_that_needs_it() -> None:
    """All tasks have two right directions in common, and left ones of their own."""
    right = frame(60, 2).mT.contiguous()
    tasks = [LayerUpdate(frame(10, 2, i), right) for i in range(5)]
    found = problem(tasks)
    bases, k = refine(found, 4, 4)
    assert sizes(found.updates, None, 4).joint(*k) <= sizes(found.updates, None, 4).joint(4, 4)
    assert k[0] > 4 > k[1] >= 2
    assert found.energy(bases.first(k)) > found.energy(hosvd(found, (4, 4))) + 0.1


def test_sizes_count_cores_where_p_is_the_whole_of_a_side() -> None:
    size = Sizes(10, 10, (3,), 4)
    assert size.coefficients(3, 9) == 4 * 27
    assert size.coefficients(4, 4) == 4 * 24
    assert size.coefficients(8, 8) == 4 * 48
