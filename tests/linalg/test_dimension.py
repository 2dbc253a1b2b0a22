"""How k is chosen: options, rules, and what a pseudo-rank makes unreachable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import dense_tasks, law, problem, update
from sharespace.errors import OptionError
from sharespace.linalg.dimension import Dimension, energy_table, relative_errors, smallest_bases
from sharespace.linalg.joint import hosvd
from sharespace.linalg.problem import BasisPair, UpdateProblem

NAN = float("nan")


def _problem(p: int | None = None, count: int = 8) -> UpdateProblem:
    return problem([update(20, 16, 3, i, dtype=torch.float64) for i in range(count)], p)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 3, "variance": 0.5},
        {"k": 0},
        {"k": {"*": 0}},
        {"k": {"*": (3, -1)}},
        {"variance": 0.0},
        {"variance": 1.1},
        {"variance": NAN},
        {"error": 0.0},
        {"error": 1.5},
        {"budget": 0},
        {"budget": -5},
        {"k": 2.5},
        {"k": "16"},
        {"k": True},
        {"k": NAN},
        {"k": (3, 3)},
        {"k": {"*": 2.5}},
        {"k": {"*": "16"}},
        {"k": {"*": False}},
        {"k": {"*": (3, "4")}},
        {"k": {"*": (3,)}},
        {"k": {"*": (3, 4, 5)}},
        {"k": {"*": [3, 4]}},
        {"k": {"*": None}},
        {"variance": "0.5"},
        {"variance": True},
        {"error": NAN},
        {"budget": 1.5},
        {"budget": "1000"},
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options), "the dimension")):
        Dimension(**options)


def test_numbers_of_numpy_are_numbers() -> None:
    assert Dimension(k=np.int64(3)).cap("anything") == (3, 3)
    assert Dimension(variance=np.float64(0.5)).variance == 0.5


def test_the_first_pattern_that_matches_counts() -> None:
    rule = Dimension(k={"*.query": 4, "model.*": (2, 3)})
    assert rule.cap("model.0.query") == (4, 4)
    assert rule.cap("model.0.value") == (2, 3)
    with pytest.raises(OptionError, match="no pattern matches"):
        rule.cap("other")
    assert Dimension(k=5).cap("anything") == (5, 5)
    assert Dimension(variance=0.5).cap("anything") is None


def _few(seed: int, p: int | None) -> UpdateProblem:
    return problem([update(18, 15, 3, 9 * seed + i, dtype=torch.float64) for i in range(5)], p)


def _many() -> UpdateProblem:
    """Independent tasks with sides of 100 and 90 directions in all: the first look, at 64
    directions, is not enough."""
    return problem([update(100, 95, 3, i, dtype=torch.float64) for i in range(30)])


@law()
@given(seed=st.integers(0, 99), variance=st.floats(0.05, 0.999), p=st.sampled_from([None, 1, 2, 3]))
def test_variance_is_reached_or_refused(seed: int, variance: float, p: int | None) -> None:
    tasks = _few(seed, p)
    try:
        bases = smallest_bases(tasks, Dimension(variance=variance))
    except OptionError:
        best = sum(float(torch.linalg.svdvals(t)[:p].square().sum()) for t in _unit(tasks))
        assert best < variance * 5
        return
    assert tasks.energy(bases) >= variance * tasks.total * (1 - 1e-6)


def _unit(tasks: UpdateProblem) -> list[torch.Tensor]:
    return [t / t.norm() for t in dense_tasks(tasks.updates)]


@law()
@given(seed=st.integers(0, 99), error=st.floats(1e-6, 0.9), p=st.sampled_from([None, 1, 2, 3]))
def test_error_is_reached_or_refused(seed: int, error: float, p: int | None) -> None:
    tasks = _few(seed, p)
    try:
        bases = smallest_bases(tasks, Dimension(error=error))
    except OptionError:
        tails = [float(torch.linalg.svdvals(t)[p:].norm()) for t in _unit(tasks)]
        assert max(tails) > error
        return
    assert max(_dense_errors(tasks, bases)) <= error + 2e-6


def _dense_errors(tasks: UpdateProblem, bases: BasisPair) -> list[float]:
    energies = [
        float(torch.linalg.svdvals(bases.left.mT @ task @ bases.right)[: tasks.p].square().sum())
        for task in _unit(tasks)
    ]
    return [max(1 - energy, 0.0) ** 0.5 for energy in energies]


def test_more_than_the_first_look_is_taken_where_a_rule_needs_it() -> None:
    tasks = _many()
    by_variance = smallest_bases(tasks, Dimension(variance=0.99))
    assert 64 < min(by_variance.k) < 90
    assert tasks.energy(by_variance) >= 0.99 * tasks.total * (1 - 1e-6)
    by_error = smallest_bases(tasks, Dimension(error=0.05))
    assert min(by_error.k) > 64
    assert max(_dense_errors(tasks, by_error)) <= 0.05 + 2e-6


def test_a_rule_takes_fewer_directions_than_everything() -> None:
    found = _problem()
    sizes = [sum(smallest_bases(found, Dimension(variance=v)).k) for v in (0.3, 0.8, 1.0)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[2]


def test_variance_of_one_keeps_the_numerical_rank() -> None:
    found = problem([update(20, 16, 3, 1, dtype=torch.float64)] * 4)
    assert smallest_bases(found, Dimension(variance=1.0)).k == (3, 3)


def test_a_pseudo_rank_that_is_the_true_rank_is_enough_for_everything() -> None:
    """Trailing singular values that are rounding must not make a rule unreachable."""
    deficient = update(20, 16, 2, 1)
    wide = type(deficient)(deficient.up @ torch.ones(2, 5), torch.ones(5, 16))
    bases = smallest_bases(problem([wide], 1, torch.float32), Dimension(variance=1.0))
    assert bases.k == (1, 1)


def test_a_pseudo_rank_that_costs_more_than_the_rule_is_refused() -> None:
    with pytest.raises(OptionError, match="p=1"):
        smallest_bases(_problem(1), Dimension(variance=0.99))
    with pytest.raises(OptionError, match="p=1"):
        smallest_bases(_problem(1), Dimension(error=0.1))


def test_energy_table_is_nested_energies() -> None:
    found = _problem()
    bases = hosvd(found, (5, 4))
    table = energy_table(found, bases, found.weights)
    for a, b in ((1, 1), (2, 4), (5, 3)):
        assert float(table[a - 1, b - 1]) == pytest.approx(found.energy(bases.first((a, b))))


@pytest.mark.parametrize("p", [None, 1, 2])
def test_relative_errors_agree_with_dense_arithmetic(p: int | None) -> None:
    found = _problem(p)
    bases = hosvd(found, (6, 5))
    for error, task in zip(relative_errors(found, bases).tolist(), _unit(found), strict=True):
        kept = torch.linalg.svdvals(bases.left.mT @ task @ bases.right)[:p].square().sum()
        assert error == pytest.approx((1 - float(kept)) ** 0.5, rel=1e-9)
