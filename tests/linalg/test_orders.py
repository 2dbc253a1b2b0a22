"""Families are found, and bases give them a part each, one after the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import frame, gauss, law, orthonormality, problem, update
from sharespace.linalg.families import families
from sharespace.linalg.joint import Problem, hosvd
from sharespace.linalg.menu import menu
from sharespace.linalg.orders import orders
from sharespace.subspace.adapter import LayerUpdate


def _family(count: int, seed: int, n: int = 40, d: int = 32, k: int = 2) -> list[LayerUpdate]:
    left, right = frame(n, k, seed), frame(d, k, seed + 1)
    return [
        LayerUpdate(left @ gauss(seed + i, k, 2), gauss(seed + 500 + i, 2, k) @ right.mT)
        for i in range(count)
    ]


def _mixed(strangers: int = 2) -> Problem:
    """Tasks 0 to 5 and 6 to 9 are families; the others are strangers."""
    alone = [update(40, 32, 3, 77 + i, dtype=torch.float64) for i in range(strangers)]
    return problem([*_family(6, 10), *_family(4, 2000), *alone])


def test_families_are_found_the_largest_first() -> None:
    assert families(_mixed()) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]


def test_strangers_are_in_no_family() -> None:
    assert families(problem([update(40, 32, 3, i, dtype=torch.float64) for i in range(6)])) == []


def test_updates_of_zero_are_in_no_family() -> None:
    zero = LayerUpdate(torch.zeros(40, 2), torch.zeros(2, 32))
    assert families(problem([zero] * 4)) == []


def test_the_first_parts_hold_the_families() -> None:
    found = _mixed()
    common, *by_family = orders(found, 32)
    assert common.marks == ((), ())
    last = by_family[-1]
    assert last.marks == ((2, 4), (2, 4))
    card = menu(found, last.bases, 4, last.marks)
    at = [card.steps[0].tolist().index(k) for k in (2, 4)]
    assert float(card.lost[at[0], at[0], :6, 2].max()) < 1e-20
    assert float(card.lost[at[1], at[1], 6:10, 2].max()) < 1e-20


def test_one_family_of_all_tasks_needs_no_order_of_its_own() -> None:
    assert len(list(orders(problem(_family(5, 3)), 10))) == 1


@pytest.mark.parametrize("limit", [0, 1, 3, 1000])
def test_the_limit_is_kept(limit: int) -> None:
    for order in orders(_mixed(), limit):
        assert max(order.bases.k) <= min(limit, 40)
        assert all(
            m <= k for marks, k in zip(order.marks, order.bases.k, strict=True) for m in marks
        )


@law(15)
@given(seed=st.integers(0, 999), strangers=st.integers(0, 5), limit=st.integers(1, 32))
def test_all_bases_are_orthonormal(seed: int, strangers: int, limit: int) -> None:
    alone = [update(40, 32, 3, seed + i, dtype=torch.float64) for i in range(strangers)]
    found = problem([*_family(4, seed), *_family(3, seed + 5000), *alone])
    for order in orders(found, limit):
        assert orthonormality(order.bases.left) < 1e-12
        assert orthonormality(order.bases.right) < 1e-12


def test_the_parts_lose_less_than_common_directions_at_the_same_bytes() -> None:
    """Two families of ten: in the order by family, each stores cores of two directions."""
    found = problem([*_family(30, 10, k=3), *_family(20, 9000, k=3)])
    plain, *by_family = [menu(found, o.bases, 4, o.marks) for o in orders(found, 32)]
    least = min(card.at(1e-6, found.weights).nbytes for card in by_family)
    assert least < 0.9 * plain.at(1e-6, found.weights).nbytes
    whole = hosvd(found, (32, 32))
    assert whole.k == (6, 6)
