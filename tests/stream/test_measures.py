"""Continual-learning measures: by hand, and against their formulas by brute force."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import law
from sharespace.errors import OptionError
from sharespace.stream import measures
from sharespace.stream.measures import ScoreMatrix

R = ScoreMatrix(
    ("a", "b", "c", "d"),
    ("build", "+ c", "+ d"),
    ((90.0, 80.0, None, None), (92.0, 79.0, 70.0, None), (89.0, 81.0, 66.0, 60.0)),
)
OWN = {"a": 90.0, "b": 82.0, "c": 75.0, "d": 60.0}
ONE_STEP = ScoreMatrix(("a", "b"), ("s",), ((90.0, 80.0),))
SCORE = st.floats(-100, 100).map(lambda x: round(x, 3))


@st.composite
def streams(draw: st.DrawFn) -> ScoreMatrix:
    """Every step learns none, one or several tasks; columns in any order; zero-shot scores."""
    steps = draw(st.integers(1, 5))
    learned = draw(st.lists(st.integers(0, steps - 1), min_size=1, max_size=6))
    rows = tuple(tuple(draw(SCORE) for _ in learned) for _ in range(steps))
    tasks = tuple(f"t{i}" for i in range(len(learned)))
    names = tuple(f"s{t}" for t in range(steps))
    return ScoreMatrix(tasks, names, rows, tuple(learned), "drawn")


def learned_pairs(matrix: ScoreMatrix) -> list[tuple[int, int]]:
    """(task, its step) where both are numbers."""
    return [(i, at) for i, at in enumerate(matrix.learned) if at is not None]


def value(matrix: ScoreMatrix, t: int, i: int) -> float:
    score = matrix.scores[t][i]
    assert score is not None
    return score


def mean_of(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def test_acc_is_the_mean_of_the_last_row() -> None:
    assert measures.acc(R) == 74.0


def test_acc_over_steps_counts_the_tasks_learned_by_then() -> None:
    assert measures.acc_over_steps(R) == [85.0, pytest.approx(241 / 3), 74.0]
    rows = ((5.0, 7.0), (50.0, 60.0))
    late = ScoreMatrix(("a", "b"), ("1", "2"), rows, (1, 1), "head on mean core")
    assert measures.acc_over_steps(late) == [None, 55.0]


def test_backward_transfer_leaves_out_the_last_task() -> None:
    assert measures.backward_transfer(R) == pytest.approx((-1 + 1 - 4) / 3)


def test_forgetting_counts_from_the_best_earlier_score() -> None:
    assert measures.task_forgetting(R) == {"a": 3.0, "b": -1.0, "c": 4.0}
    assert measures.forgetting(R) == pytest.approx((3 - 1 + 4) / 3)


def test_a_single_step_forgets_nothing() -> None:
    assert measures.backward_transfer(ONE_STEP) == 0.0
    assert measures.forgetting(ONE_STEP) == 0.0
    assert measures.task_forgetting(ONE_STEP) == {}


def test_plasticity_and_retained_compare_with_own_lora() -> None:
    assert measures.plasticity(R, OWN) == pytest.approx((0 - 2 - 5 + 0) / 4)
    assert measures.retained(R, OWN)["c"] == pytest.approx(66 / 75)
    assert measures.retained(ONE_STEP, {"a": 0.0, "b": 40.0}) == {"a": None, "b": 2.0}


def test_forward_transfer_compares_the_step_before_with_no_earlier_task() -> None:
    rows = ((90.0, 20.0, 30.0), (90.0, 60.0, 45.0), (90.0, 60.0, 70.0))
    matrix = ScoreMatrix(("a", "b", "c"), ("1", "2", "3"), rows, (0, 1, 2), "head on mean core")
    initial = {"a": 50.0, "b": 15.0, "c": 25.0}
    assert measures.forward_transfer(matrix, initial) == pytest.approx((20 - 15 + 45 - 25) / 2)


def test_forward_transfer_needs_a_stated_rule_and_a_later_task() -> None:
    with pytest.raises(OptionError, match="Set zero_shot"):
        measures.forward_transfer(R, OWN)
    alone = ScoreMatrix(("a",), ("s",), ((1.0,),), (0,), "rule")
    assert measures.forward_transfer(alone, {"a": 0.0}) is None


def test_gain_retained_is_a_ratio_of_means() -> None:
    share, own, head = {"a": 70.0, "b": 90.0}, {"a": 80.0, "b": 90.0}, {"a": 60.0, "b": 80.0}
    assert measures.gain_retained(share, own, head) == pytest.approx(10 / 15)
    assert measures.gain_retained(share, head, head) is None


def test_scores_of_other_tasks_are_refused() -> None:
    with pytest.raises(OptionError, match="one score a task"):
        measures.plasticity(R, {"a": 1.0})
    with pytest.raises(OptionError, match="one score a task"):
        measures.gain_retained({}, {}, {})


@pytest.mark.parametrize("measure", [measures.acc, measures.backward_transfer, measures.forgetting])
def test_a_task_that_was_never_learned_is_refused(
    measure: Callable[[ScoreMatrix], float],
) -> None:
    with pytest.raises(OptionError, match="not learned"):
        measure(ScoreMatrix(("a", "b"), ("s",), ((1.0, None),)))


def test_forgetting_does_not_guess_a_score_that_is_missing() -> None:
    gap = ScoreMatrix(("a",), ("s", "t", "u"), ((9.0,), (None,), (8.0,)))
    assert measures.backward_transfer(gap) == -1.0
    with pytest.raises(OptionError, match="not scored after step 't'"):
        measures.forgetting(gap)


@law()
@given(streams())
def test_measures_are_their_formulas(matrix: ScoreMatrix) -> None:
    end = len(matrix.steps) - 1
    earlier = [(i, at) for i, at in learned_pairs(matrix) if at < end]
    change = [value(matrix, end, i) - value(matrix, at, i) for i, at in earlier]
    lost = [
        max(value(matrix, t, i) for t in range(at, end)) - value(matrix, end, i)
        for i, at in earlier
    ]
    assert measures.acc(matrix) == pytest.approx(mean_of(list(matrix.scores[-1])))  # type: ignore[arg-type]
    assert measures.backward_transfer(matrix) == pytest.approx(mean_of(change), abs=1e-9)
    assert measures.forgetting(matrix) == pytest.approx(mean_of(lost), abs=1e-9)


@law()
@given(streams(), st.lists(SCORE, min_size=6, max_size=6))
def test_forward_transfer_is_its_formula(matrix: ScoreMatrix, initial: list[float]) -> None:
    gains = [value(matrix, at - 1, i) - initial[i] for i, at in learned_pairs(matrix) if at > 0]
    found = measures.forward_transfer(matrix, dict(zip(matrix.tasks, initial, strict=False)))
    assert found == (pytest.approx(mean_of(gains), abs=1e-9) if gains else None)


@law()
@given(streams())
def test_forgetting_is_at_least_minus_backward_transfer(matrix: ScoreMatrix) -> None:
    assert measures.forgetting(matrix) >= -measures.backward_transfer(matrix) - 1e-9


@law()
@given(streams())
def test_scores_that_only_fall_give_forgetting_that_is_minus_backward_transfer(
    matrix: ScoreMatrix,
) -> None:
    columns = [sorted(column, reverse=True) for column in zip(*matrix.scores, strict=True)]
    rows = tuple(zip(*columns, strict=True))
    falling = ScoreMatrix(matrix.tasks, matrix.steps, rows, matrix.learned, "drawn")
    found = measures.forgetting(falling)
    assert found >= 0
    assert found == pytest.approx(-measures.backward_transfer(falling), abs=1e-9)


@law()
@given(streams())
def test_the_order_of_the_columns_changes_nothing(matrix: ScoreMatrix) -> None:
    turned = ScoreMatrix(
        matrix.tasks[::-1],
        matrix.steps,
        tuple(row[::-1] for row in matrix.scores),
        matrix.learned[::-1],
        "drawn",
    )
    for measure in (measures.acc, measures.backward_transfer, measures.forgetting):
        assert measure(turned) == pytest.approx(measure(matrix), abs=1e-9)
