"""Spending bytes: curves are true, points are kept to, greedy is near the best."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import dense_tasks, frame, law, problem, update
from sharespace.linalg.budget.allocate import (
    LayerOption,
    allocate,
    layer_options,
    own_svd_options,
    split_budget,
    spread_remaining,
)
from sharespace.subspace.adapter import LayerUpdate


def test_the_own_curve_is_the_sorted_tails_of_all_tasks() -> None:
    found = problem([update(9, 7, 3, i, norm=i + 1.0, dtype=torch.float64) for i in range(3)])
    profiled = own_svd_options(found.updates, 4)
    points = profiled.affordable(found.weights, 10**9)
    values = torch.cat([torch.linalg.svdvals(t / t.norm()) for t in dense_tasks(found.updates)])
    values = values.square().sort(descending=True).values
    assert [p.columns for p in points] == list(range(10))
    for point in points:
        assert point.lost == pytest.approx(float(values[point.columns :].sum()), abs=1e-12)
        ranks = profiled.own_ranks(found.weights, point.columns)
        assert sum(ranks) == point.columns


def test_points_end_at_the_budget() -> None:
    found = problem([update(9, 7, 3, i, dtype=torch.float64) for i in range(3)])
    assert all(p.nbytes <= 300 for p in layer_options(found, 4, 300).affordable(found.weights, 300))
    assert [p.nbytes for p in layer_options(found, 4, 0).affordable(found.weights, 0)] == [0]


@law(15)
@given(
    relatives=st.integers(0, 6),
    strangers=st.integers(0, 4),
    seed=st.integers(0, 99),
    budget=st.integers(400, 6000),
)
def test_a_point_is_kept_and_no_more_is_lost_than_it_says(
    relatives: int, strangers: int, seed: int, budget: int
) -> None:
    right = frame(14, 2, seed).mT.contiguous()
    tasks = [LayerUpdate(frame(15, 3, seed)[:, i % 2 :][:, :2], right) for i in range(relatives)]
    tasks += [update(15, 14, 3, seed + i, dtype=torch.float64) for i in range(strangers + 1)]
    found = problem(tasks)
    for point in layer_options(found, 4, budget).affordable(found.weights, budget):
        if not point.is_own:
            parts = allocate(found, point, 4, budget)
            assert sorted(i for part in parts for i in part.tasks) == list(range(len(tasks)))
            assert sum(part.choices.nbytes for part in parts) <= point.nbytes
            assert all(part.choices.k == part.bases.k for part in parts)
            lost = sum(part.choices.weighed(found.weights[list(part.tasks)]) for part in parts)
            assert lost <= point.lost + 1e-12


def test_what_is_left_over_is_given_to_common_bases() -> None:
    own, small, large = (
        LayerOption(10, 1.0),
        LayerOption(20, 1.0, group_ks=((1, 1),)),
        LayerOption(40, 1.0, group_ks=((2, 2),)),
    )
    found = spread_remaining([own, small, large], 100)
    assert [p.nbytes for p in found] == [10, 30, 60]
    assert spread_remaining([own], 100) == [own]


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
        [
            LayerOption(0, 1.0),
            *(LayerOption(b, lost, int(not j), ((1, 1),) * int(j)) for b, lost, j in curve),
        ]
        for curve in curves
    ]
    chosen = split_budget(offers, budget)
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
        [
            LayerOption(0, 1.0),
            *(LayerOption(b, lost, columns=1) for b, lost, joint in curve if not joint),
        ]
        for curve in curves
    ]
    both = [
        [*offer, *(LayerOption(b, lost, group_ks=((1, 1),)) for b, lost, joint in curve if joint)]
        for offer, curve in zip(own, curves, strict=True)
    ]
    alone = sum(p.lost for p in split_budget(own, budget))
    assert sum(p.lost for p in split_budget(both, budget)) <= alone + 1e-12


def test_a_large_joint_step_does_not_crowd_out_own_svds() -> None:
    """The joint subspace has the better slope, and leaves no bytes for the other module."""
    shared = [
        LayerOption(0, 1.0),
        LayerOption(10, 0.55, columns=1),
        LayerOption(11, 0.5, group_ks=((1, 1),)),
    ]
    other = [LayerOption(0, 1.0), LayerOption(10, 0.57, columns=1)]
    assert [p.nbytes for p in split_budget([shared, other], 20)] == [10, 10]


def test_spending_buys_no_bytes_for_nothing() -> None:
    offer = [
        LayerOption(0, 1.0),
        LayerOption(10, 0.0, group_ks=((1, 1),)),
        LayerOption(90, 0.0, columns=9),
    ]
    assert split_budget([offer], 100) == [offer[1]]
