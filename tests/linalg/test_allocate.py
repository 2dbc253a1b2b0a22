"""Splitting bytes: options are true and kept to, the split is near the best, groups are found."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import dense_tasks, frame, gauss, law, orthonormality, problem, update
from sharespace.linalg.allocate import (
    GROUPINGS,
    LayerOption,
    TaskGroup,
    allocate,
    choices_within,
    find_groups,
    layer_options,
    own_svd_options,
    split_budget,
    spread_remaining,
    weighed_loss,
)
from sharespace.linalg.problem import UpdateProblem
from sharespace.subspace.adapter import LayerUpdate


def test_own_svds_lose_the_sorted_tails_of_all_tasks() -> None:
    tasks = problem([update(9, 7, 3, i, norm=i + 1.0, dtype=torch.float64) for i in range(3)])
    own = own_svd_options(tasks.updates, 4)
    options = own.affordable(tasks.weights, 10**9)
    values = torch.cat([torch.linalg.svdvals(t / t.norm()) for t in dense_tasks(tasks.updates)])
    values = values.square().sort(descending=True).values
    assert [option.columns for option in options] == list(range(10))
    for option in options:
        assert option.lost == pytest.approx(float(values[option.columns :].sum()), abs=1e-12)
        ranks = own.own_ranks(tasks.weights, option.columns)
        assert sum(ranks) == option.columns


def test_options_end_at_the_budget() -> None:
    tasks = problem([update(9, 7, 3, i, dtype=torch.float64) for i in range(3)])
    offered = layer_options(tasks, 4, 300).affordable(tasks.weights, 300)
    assert all(option.nbytes <= 300 for option in offered)
    nothing = layer_options(tasks, 4, 0).affordable(tasks.weights, 0)
    assert [option.nbytes for option in nothing] == [0]


@law(20)
@given(
    related=st.integers(0, 6),
    independent=st.integers(0, 4),
    seed=st.integers(0, 99),
    budget=st.integers(400, 6000),
    every=st.integers(7, 11),
)
def test_an_option_is_kept_to_and_no_more_is_lost_than_it_says(
    related: int, independent: int, seed: int, budget: int, every: int
) -> None:
    right = frame(14, 2, seed).mT.contiguous()
    updates = [LayerUpdate(frame(15, 3, seed)[:, i % 2 :][:, :2], right) for i in range(related)]
    updates += [update(15, 14, 3, seed + i, dtype=torch.float64) for i in range(independent + 1)]
    tasks = problem(updates)
    offered = layer_options(tasks, 4, budget).affordable(tasks.weights, budget)
    for option in [o for o in offered if not o.is_own][::every]:
        groups = allocate(tasks, option, 4, budget)
        assert sorted(i for group in groups for i in group.tasks) == list(range(len(updates)))
        assert sum(group.choices.nbytes for group in groups) <= option.nbytes
        assert all(group.choices.k == group.bases.k for group in groups)
        lost = sum(group.choices.weighed(tasks.weights[list(group.tasks)]) for group in groups)
        assert lost <= option.lost + 1e-12


def test_what_remains_is_given_to_common_bases() -> None:
    own = LayerOption(10, 1.0)
    small, large = (
        LayerOption(20, 1.0, group_ks=((1, 1),)),
        LayerOption(40, 1.0, group_ks=((2, 2),)),
    )
    spread = spread_remaining([own, small, large], 100)
    assert [option.nbytes for option in spread] == [10, 30, 60]
    assert spread_remaining([own], 100) == [own]


CURVES = st.lists(
    st.lists(
        st.tuples(st.integers(1, 20), st.floats(0.0, 1.0), st.booleans()), min_size=0, max_size=4
    ),
    min_size=1,
    max_size=3,
)
"""For each layer options of (bytes, lost, whether they have common bases)."""


def _option(nbytes: int, lost: float, shared: bool) -> LayerOption:
    if shared:
        return LayerOption(nbytes, lost, group_ks=((1, 1),))
    return LayerOption(nbytes, lost, columns=1)


@law(40)
@given(curves=CURVES, budget=st.integers(0, 60))
def test_the_split_fits_and_is_within_one_step_of_the_best(
    curves: list[list[tuple[int, float, bool]]], budget: int
) -> None:
    offers = [[LayerOption(0, 1.0), *(_option(*values) for values in curve)] for curve in curves]
    options = split_budget(offers, budget)
    assert sum(option.nbytes for option in options) <= budget
    assert all(option in offer for option, offer in zip(options, offers, strict=True))
    largest = max(option.nbytes for offer in offers for option in offer)
    best = min(
        sum(option.lost for option in combination)
        for combination in product(*offers)
        if sum(option.nbytes for option in combination) <= max(budget - largest, 0)
    )
    assert sum(option.lost for option in options) <= best + 1e-12


@law(100)
@given(curves=CURVES, budget=st.integers(0, 60))
def test_the_split_loses_no_more_than_own_svds_alone(
    curves: list[list[tuple[int, float, bool]]], budget: int
) -> None:
    all_options = [
        [LayerOption(0, 1.0), *(_option(*values) for values in curve)] for curve in curves
    ]
    own = [[option for option in options if option.is_own] for options in all_options]
    alone = sum(option.lost for option in split_budget(own, budget))
    assert sum(option.lost for option in split_budget(all_options, budget)) <= alone + 1e-12


def test_a_large_step_to_common_bases_does_not_crowd_out_own_svds() -> None:
    """The joint subspace has the better slope, and leaves no bytes for the other layer."""
    first = [LayerOption(0, 1.0), _option(10, 0.55, False), _option(11, 0.5, True)]
    second = [LayerOption(0, 1.0), _option(10, 0.57, False)]
    assert [option.nbytes for option in split_budget([first, second], 20)] == [10, 10]


def test_the_split_buys_no_bytes_for_nothing() -> None:
    offer = [LayerOption(0, 1.0), _option(10, 0.0, True), LayerOption(90, 0.0, columns=9)]
    assert split_budget([offer], 100) == [offer[1]]


def _related(count: int, seed: int, n: int = 40, d: int = 32, k: int = 2) -> list[LayerUpdate]:
    """Tasks that lie in k common directions a side."""
    left, right = frame(n, k, seed), frame(d, k, seed + 1)
    return [
        LayerUpdate(left @ gauss(seed + i, k, 2), gauss(seed + 500 + i, 2, k) @ right.mT)
        for i in range(count)
    ]


def _independent(count: int, seed: int = 0, n: int = 40, d: int = 32) -> list[LayerUpdate]:
    return [update(n, d, 3, seed + i, dtype=torch.float64) for i in range(count)]


def _mixed() -> UpdateProblem:
    """Tasks 0 to 5 and 6 to 9 are groups; the two others are related to none."""
    return problem([*_related(6, 10), *_related(4, 2000), *_independent(2, 77)])


def _groupings(tasks: UpdateProblem, limit: int) -> list[tuple[TaskGroup, ...]]:
    """Those that are on offer."""
    offered = (grouping(tasks, 4, limit) for grouping in GROUPINGS)
    return [groups for groups in offered if groups]


def test_groups_are_found_the_largest_first() -> None:
    assert find_groups(_mixed()) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]


def test_independent_tasks_and_updates_of_zero_are_in_no_group() -> None:
    assert find_groups(problem(_independent(6))) == []
    zero = LayerUpdate(torch.zeros(40, 2), torch.zeros(2, 32))
    assert find_groups(problem([zero] * 4)) == []


def test_groups_have_subspaces_and_those_in_none_have_one_together() -> None:
    (common,), groups = _groupings(_mixed(), 32)
    assert common.tasks == tuple(range(12))
    assert [group.tasks for group in groups] == [(0, 1, 2, 3, 4, 5), (6, 7, 8, 9), (10, 11)]
    for group in groups[:2]:
        assert group.options.bases.k == (2, 2)
        lost, whole = group.options.lost[-1, -1, :, 2], group.options.own_lost[:, 0]
        assert float((lost / whole).max()) < 1e-14


@pytest.mark.parametrize("kind", ["one group of all tasks", "independent tasks"])
def test_without_separate_groups_there_is_the_common_subspace_only(kind: str) -> None:
    updates = _related(5, 3) if kind == "one group of all tasks" else _independent(6)
    assert len(_groupings(problem(updates), 10)) == 1


def test_without_directions_there_is_no_group() -> None:
    assert _groupings(_mixed(), 0) == []


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_the_limit_of_directions_is_kept(limit: int) -> None:
    groupings = _groupings(_mixed(), limit)
    assert len(groupings) == 2
    for groups in groupings:
        assert all(max(group.options.bases.k) <= min(limit, 40) for group in groups)


@law(20)
@given(seed=st.integers(0, 999), independent=st.integers(0, 5), limit=st.integers(1, 16))
def test_every_task_is_in_one_group_and_all_bases_are_orthonormal(
    seed: int, independent: int, limit: int
) -> None:
    n, d = 18, 16
    alone = _independent(independent, seed, n, d)
    tasks = problem([*_related(4, seed, n, d), *_related(3, seed + 5000, n, d), *alone])
    for groups in _groupings(tasks, limit):
        assert sorted(i for group in groups for i in group.tasks) == list(range(7 + independent))
        for group in groups:
            assert orthonormality(group.options.bases.left) < 1e-12
            assert orthonormality(group.options.bases.right) < 1e-12


def test_group_subspaces_take_fewer_bytes_at_the_same_price() -> None:
    """Two groups of two directions; in common directions all tasks store cores of four."""
    tasks = problem([*_related(30, 10), *_related(20, 9000)])
    (common,), groups = _groupings(tasks, 32)
    assert common.options.bases.k == (4, 4)
    in_groups = sum(group.choose(1e-6).nbytes for group in groups)
    assert in_groups < 0.6 * common.choose(1e-6).nbytes


@law(20)
@given(spare=st.integers(0, 3000), seed=st.integers(0, 20))
def test_more_bytes_never_lose_more(spare: int, seed: int) -> None:
    n, d = 18, 16
    tasks = problem(
        [*_related(5, seed, n, d), *_related(4, seed + 300, n, d), *_independent(1, seed, n, d)]
    )
    groups = _groupings(tasks, 16)[-1]
    least = sum(4 * (n * left + d * right) for left, right in (g.options.bases.k for g in groups))
    few, many = (choices_within(groups, least + x) for x in (spare // 2, spare))
    assert sum(chosen.nbytes for chosen in few) <= least + spare // 2
    assert sum(chosen.nbytes for chosen in many) <= least + spare
    assert weighed_loss(groups, many) <= weighed_loss(groups, few) + 1e-12
