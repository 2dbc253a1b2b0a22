"""Families are found, and each may have a subspace of its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import frame, gauss, law, orthonormality, problem, update
from sharespace.linalg.budget.allocate import GROUPINGS, Grouping, find_groups, weighed, within
from sharespace.linalg.problem import UpdateProblem
from sharespace.subspace.adapter import LayerUpdate


def _family(count: int, seed: int, n: int = 40, d: int = 32, k: int = 2) -> list[LayerUpdate]:
    left, right = frame(n, k, seed), frame(d, k, seed + 1)
    return [
        LayerUpdate(left @ gauss(seed + i, k, 2), gauss(seed + 500 + i, 2, k) @ right.mT)
        for i in range(count)
    ]


def _mixed(strangers: int = 2) -> UpdateProblem:
    """Tasks 0 to 5 and 6 to 9 are families; the others are strangers."""
    alone = [update(40, 32, 3, 77 + i, dtype=torch.float64) for i in range(strangers)]
    return problem([*_family(6, 10), *_family(4, 2000), *alone])


def schemes(found: UpdateProblem, itemsize: int, limit: int) -> list[Grouping]:
    """Those that there are."""
    return [scheme for way in GROUPINGS if (scheme := way(found, itemsize, limit))]


def test_families_are_found_the_largest_first() -> None:
    assert find_groups(_mixed()) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]


def test_strangers_are_in_no_family() -> None:
    assert find_groups(problem([update(40, 32, 3, i, dtype=torch.float64) for i in range(6)])) == []


def test_updates_of_zero_are_in_no_family() -> None:
    zero = LayerUpdate(torch.zeros(40, 2), torch.zeros(2, 32))
    assert find_groups(problem([zero] * 4)) == []


def test_families_have_subspaces_and_those_in_none_have_one_together() -> None:
    found = _mixed()
    (common,), own = schemes(found, 4, 32)
    assert common.tasks == tuple(range(12))
    assert [part.tasks for part in own] == [(0, 1, 2, 3, 4, 5), (6, 7, 8, 9), (10, 11)]
    for part in own[:2]:
        assert part.options.bases.k == (2, 2)
        lost, whole = part.options.lost[-1, -1, :, 2], part.options.own_lost[:, 0]
        assert float((lost / whole).max()) < 1e-14


def test_one_family_of_all_tasks_has_the_common_subspace() -> None:
    assert len(schemes(problem(_family(5, 3)), 4, 10)) == 1


def test_strangers_have_the_common_subspace_only() -> None:
    strangers = [update(40, 32, 3, i, dtype=torch.float64) for i in range(6)]
    assert len(schemes(problem(strangers), 4, 10)) == 1


def test_no_directions_no_scheme() -> None:
    assert schemes(_mixed(), 4, 0) == []


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_the_limit_is_kept(limit: int) -> None:
    assert len(schemes(_mixed(), 4, limit)) == 2
    for scheme in schemes(_mixed(), 4, limit):
        assert all(max(part.options.bases.k) <= min(limit, 40) for part in scheme)


@law(15)
@given(seed=st.integers(0, 999), strangers=st.integers(0, 5), limit=st.integers(1, 32))
def test_every_task_is_in_one_part_and_all_bases_are_orthonormal(
    seed: int, strangers: int, limit: int
) -> None:
    alone = [update(40, 32, 3, seed + i, dtype=torch.float64) for i in range(strangers)]
    found = problem([*_family(4, seed), *_family(3, seed + 5000), *alone])
    for scheme in schemes(found, 4, limit):
        assert sorted(i for part in scheme for i in part.tasks) == list(range(7 + strangers))
        for part in scheme:
            assert orthonormality(part.options.bases.left) < 1e-12
            assert orthonormality(part.options.bases.right) < 1e-12


def test_families_alone_take_fewer_bytes_at_the_same_price() -> None:
    """Two families of two directions; in common directions all tasks store cores of four."""
    found = problem([*_family(30, 10), *_family(20, 9000)])
    (common,), own = schemes(found, 4, 32)
    assert common.options.bases.k == (4, 4)
    assert sum(part.choose(1e-6).nbytes for part in own) < 0.6 * common.choose(1e-6).nbytes


@law()
@given(spare=st.integers(0, 6000), seed=st.integers(0, 20))
def test_more_bytes_never_lose_more(spare: int, seed: int) -> None:
    alone = update(40, 32, 3, seed, dtype=torch.float64)
    found = problem([*_family(5, seed), *_family(4, seed + 300), alone])
    scheme = schemes(found, 4, 32)[-1]
    least = sum(4 * (40 * left + 32 * right) for left, right in (p.options.bases.k for p in scheme))
    few, many = (within(scheme, least + x) for x in (spare // 2, spare))
    assert sum(chosen.nbytes for chosen in few) <= least + spare // 2
    assert sum(chosen.nbytes for chosen in many) <= least + spare
    assert weighed(scheme, many) <= weighed(scheme, few) + 1e-12
