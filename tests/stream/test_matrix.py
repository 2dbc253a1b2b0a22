"""The R matrix: what it refuses, growing step by step, and its record."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sharespace.errors import OptionError
from sharespace.stream.measures import ScoreMatrix

R = ScoreMatrix(
    ("a", "b", "c"),
    ("build", "+ c", "again"),
    ((90.0, 80.0, None), (92.0, 79.0, 70.0), (91.0, 81.0, 69.0)),
)


def grown() -> ScoreMatrix:
    made = ScoreMatrix(("a", "b", "c"))
    made = made.with_step("build", {"a": 90.0, "b": 80.0}, learned=["a", "b"])
    made = made.with_step("+ c", {"a": 92.0, "b": 79.0, "c": 70.0}, learned=["c"])
    return made.with_step("again", {"c": 69.0, "a": 91.0, "b": 81.0})


def test_the_step_that_learned_a_task_is_its_first_score_unless_stated() -> None:
    assert R.learned == (0, 0, 1)
    stated = ScoreMatrix(("a",), ("s", "t"), ((10.0,), (50.0,)), (1,), zero_shot="mean core")
    assert stated.first == {"a": 50.0}


def test_grows_step_by_step_to_the_same_value() -> None:
    assert grown() == R


def test_first_and_last_scores() -> None:
    assert R.first == {"a": 90.0, "b": 80.0, "c": 70.0}
    assert R.last == {"a": 91.0, "b": 81.0, "c": 69.0}


def test_up_to_a_step_is_the_stream_as_it_was_then() -> None:
    before = R.up_to(0)
    assert before == ScoreMatrix(("a", "b"), ("build",), ((90.0, 80.0),))
    assert R.up_to(2) == R


def test_up_to_keeps_which_step_learned_a_task() -> None:
    late = ScoreMatrix(("a", "b"), ("s", "t"), ((50.0, 10.0), (50.0, 60.0)), (0, 1), "head alone")
    assert late.up_to(0).tasks == ("a",)
    assert late.up_to(1) == late


def test_lists_are_taken_and_frozen() -> None:
    given: Any = [["a"], ["s"], [[1.0]]]
    assert hash(ScoreMatrix(*given)) == hash(ScoreMatrix(("a",), ("s",), ((1.0,),)))


@pytest.mark.parametrize("matrix", [R, grown(), ScoreMatrix(("a",))])
def test_record_survives_json(matrix: ScoreMatrix) -> None:
    assert ScoreMatrix.from_record(json.loads(json.dumps(matrix.to_record()))) == matrix


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scores", None, "does not fit"),
        ("scores", [[1.0]], "1 rows for 3 steps"),
        ("learned", [0], "1 entries for 3 tasks"),
        ("zero_shot", ..., "no .'zero_shot'. in its record"),
    ],
)
def test_a_broken_record_is_refused(field: str, value: object, message: str) -> None:
    record = {**R.to_record(), field: value}
    if value is ...:
        del record[field]
    with pytest.raises(OptionError, match=message):
        ScoreMatrix.from_record(record)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), "no name or one twice"),
        ((("a", "a"),), "no name or one twice"),
        ((("a",), ("s",), ()), "0 rows for 1 steps"),
        ((("a",), ("s",), ((1.0, 2.0),)), "2 scores for 1 tasks"),
        ((("a",), ("s",), ((float("nan"),),)), "not a finite number"),
        ((("a",), ("s",), ((float("inf"),),)), "not a finite number"),
        ((("a",), ("s",), ((1.0,),), (1,)), "step 1 of 1"),
        ((("a",), ("s",), ((1.0,),), (-1,)), "step -1 of 1"),
        ((("a",), ("s", "t"), ((1.0,), (1.0,)), (1,)), "before it was learned"),
        ((("a",), ("s",), ((1.0,),), (None,)), "before it was learned"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ScoreMatrix(*arguments)


def test_a_step_cannot_learn_a_task_again_or_name_an_unknown_one() -> None:
    with pytest.raises(OptionError, match="earlier step"):
        R.with_step("x", {"a": 1.0}, learned=["a"])
    with pytest.raises(OptionError, match="task 'd'"):
        R.with_step("x", {"d": 1.0})


def test_a_score_before_learning_needs_its_rule() -> None:
    start = ScoreMatrix(("a", "b"))
    with pytest.raises(OptionError, match="which step learned"):
        start.with_step("s", {"a": 1.0, "b": 2.0}, learned=["a"])
    stated = ScoreMatrix(("a", "b"), zero_shot="head on the mean core")
    assert stated.with_step("s", {"a": 1.0, "b": 2.0}, learned=["a"]).learned == (0, None)


def test_a_task_that_was_not_learned_or_not_scored_at_the_end_is_named() -> None:
    with pytest.raises(OptionError, match="'b' was not learned"):
        _ = ScoreMatrix(("a", "b"), ("s",), ((1.0, None),)).first
    with pytest.raises(OptionError, match="'b' was not learned"):
        _ = ScoreMatrix(("a", "b"), ("s",), ((1.0, 2.0),), (0, None), "rule").last
    with pytest.raises(OptionError, match="'a' was not scored after step 't'"):
        _ = ScoreMatrix(("a",), ("s", "t"), ((1.0,), (None,))).last
