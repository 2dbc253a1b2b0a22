"""Continual-learning measures, by hand."""

from __future__ import annotations

import pytest

from sharespace.errors import OptionError
from sharespace.learn import measures

R: list[list[float | None]] = [
    [90.0, 80.0, None, None],
    [92.0, 79.0, 70.0, None],
    [89.0, 81.0, 66.0, 60.0],
]


def test_first_and_last_scores() -> None:
    assert measures.first_scores(R) == [90.0, 80.0, 70.0, 60.0]
    assert measures.last_scores(R) == [89.0, 81.0, 66.0, 60.0]


def test_accuracy_is_the_mean_of_the_last_row() -> None:
    assert measures.accuracy(R) == 74.0


def test_backward_transfer_leaves_out_the_last_task() -> None:
    assert measures.backward_transfer(R) == pytest.approx((-1 + 1 - 4) / 3)


def test_forgetting_counts_from_the_best_earlier_score() -> None:
    assert measures.forgetting(R) == pytest.approx((3 - 1 + 4) / 3)


def test_a_single_step_forgets_nothing() -> None:
    assert measures.backward_transfer([[90.0, 80.0]]) == 0.0
    assert measures.forgetting([[90.0, 80.0]]) == 0.0


def test_gain_retained_is_a_ratio_of_means() -> None:
    assert measures.gain_retained([70, 90], [80, 90], [60, 80]) == pytest.approx(10 / 15)
    assert measures.gain_retained([1.0], [1.0], [1.0]) is None


def test_a_task_without_scores_is_refused() -> None:
    with pytest.raises(OptionError, match="scores"):
        measures.first_scores([[1.0, None]])
