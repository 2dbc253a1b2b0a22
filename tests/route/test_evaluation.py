"""Scores of a router, on a case small enough to count by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from sharespace.errors import MismatchError, OptionError, TaskNotFoundError
from sharespace.route import LabelledInputs, RoutedInputs, evaluate


def _routing(*tasks: str | None) -> RoutedInputs:
    rows = torch.zeros(len(tasks), 2, dtype=torch.float64)
    return RoutedInputs(("shop", "cinema"), tasks, rows, rows[:, 0])


EXAMPLES = {
    "shop": LabelledInputs([0, 1, 2, 3], ["good", "bad", "good", "bad"]),
    "cinema": LabelledInputs([10, 11], ["good", "bad"]),
}
ROUTINGS = {
    "shop": _routing("shop", "shop", "cinema", None),
    "cinema": _routing("cinema", "shop"),
}


def _predict(task: str, inputs: Sequence[int]) -> list[str]:
    """The shop's head calls all good, the cinema's is right about inputs below 11."""
    truth = {0: "good", 1: "bad", 2: "good", 3: "bad", 10: "good", 11: "good"}
    return ["good" if task == "shop" else truth[i] for i in inputs]


def test_scores_by_hand() -> None:
    report = evaluate(EXAMPLES, ROUTINGS, _predict)
    shop, cinema = report.per_task["shop"], report.per_task["cinema"]
    assert (shop.routing, shop.fallback, shop.oracle) == (0.5, 0.25, 0.5)
    # Input 0 right by its own head, 1 wrong by it, 2 right by the other task's, 3 not answered.
    assert (shop.routed, shop.class_incremental) == (0.5, 0.25)
    assert (cinema.routing, cinema.fallback, cinema.oracle) == (0.5, 0.0, 0.5)
    assert (cinema.routed, cinema.class_incremental) == (0.5, 0.5)
    assert report.class_incremental == pytest.approx(0.375)
    assert report.routing == 0.5
    assert report.fallback == 0.125
    assert report.oracle == report.routed == 0.5
    assert report.confusion["shop"] == {"shop": 2, "cinema": 1, None: 1}


def test_a_perfect_router_is_the_oracle() -> None:
    perfect = {t: _routing(*[t] * len(e.inputs)) for t, e in EXAMPLES.items()}
    report = evaluate(EXAMPLES, perfect, _predict)
    assert report.routing == 1
    assert report.routed == report.class_incremental == report.oracle


def test_heads_see_only_what_is_routed_to_them() -> None:
    calls: list[tuple[str, list[int]]] = []

    def spying(task: str, inputs: Sequence[int]) -> list[str]:
        calls.append((task, list(inputs)))
        return _predict(task, inputs)

    evaluate({"shop": EXAMPLES["shop"]}, ROUTINGS, spying)
    assert calls == [("shop", [0, 1, 2, 3]), ("shop", [0, 1]), ("cinema", [2])]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(OptionError, match="no task"):
        evaluate({}, {}, _predict)
    with pytest.raises(TaskNotFoundError, match="no routing"):
        evaluate(EXAMPLES, {"shop": ROUTINGS["shop"]}, _predict)
    with pytest.raises(OptionError, match="no examples"):
        evaluate({"shop": LabelledInputs([], [])}, ROUTINGS, _predict)
    with pytest.raises(MismatchError, match="1 inputs, 2 labels and 4 routings"):
        evaluate({"shop": LabelledInputs([1], ["a", "b"])}, ROUTINGS, _predict)
    with pytest.raises(OptionError, match="0 labels for 4 inputs"):
        evaluate(EXAMPLES, ROUTINGS, lambda _task, _inputs: [])
