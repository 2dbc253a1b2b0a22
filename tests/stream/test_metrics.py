"""Metrics against values by hand and formulas; what they are not defined for is refused."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import law
from sharespace.errors import MissingExtraError, OptionError
from sharespace.stream.metrics import METRICS, metric

LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("name", "predictions", "references", "expected"),
    [
        ("accuracy", [1, 0, 2, 2], [1, 0, 1, 2], 75.0),
        # tp 1, tn 1, fp 1, fn 0: (1 - 0) / sqrt(2 * 1 * 2 * 1)
        ("matthews", [1, 1, 0], [1, 0, 0], 50.0),
        ("matthews", [1, 1, 1], [1, 0, 0], 0.0),
        ("matthews", [1, 1], [1, 1], 0.0),
        # precision 1/2, recall 1
        ("f1", [1, 1, 0], [1, 0, 0], 100 * 2 / 3),
        ("f1", [0, 0], [0, 0], 0.0),
        # label 0: 2/3, label 1: 2/3, label 2: 0
        ("macro_f1", [0, 0, 1, 2], [0, 1, 1, 0], 100 * (1 / 2 + 2 / 3 + 0) / 3),
        ("pearson", [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], 100.0),
        ("pearson", [1e9, 1e9 + 1, 1e9 + 2], [3.0, 2.0, 1.0], -100.0),
        ("pearson", [5.0, 5.0], [1.0, 2.0], 0.0),
        ("spearman", [1.0, 100.0, 2.0], [0.1, 0.3, 0.2], 100.0),
        ("pearson_spearman", [0.0, 0.0, 3.0], [0.0, 0.0, 1.0], 100.0),
        ("mse", [1.0, 3.0], [0.0, 1.0], 2.5),
        ("exact_match", [" yes", "no"], ["yes ", "No"], 50.0),
        # longest common subsequence "cat sat on mat": 4 of 6 words on both sides
        ("rouge_l", ["the cat sat on the mat"], ["a cat sat on a mat"], 100 * 4 / 6),
    ],
)
def test_values_by_hand(
    name: str, predictions: list[float], references: list[float], expected: float
) -> None:
    assert metric(name)(predictions, references) == pytest.approx(expected, abs=1e-4)


def test_pearson_spearman_is_their_mean() -> None:
    pair = [1.0, 2.0, 9.0, 3.0], [0.3, 0.1, 0.9, 0.7]
    mean = (metric("pearson")(*pair) + metric("spearman")(*pair)) / 2
    assert metric("pearson_spearman")(*pair) == pytest.approx(mean)


def test_loss_is_cross_entropy_of_what_counts() -> None:
    logits = np.log([[[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]])
    labels = [[0, 1, -100]]
    expected = -(math.log(0.5) + math.log(0.1)) / 2
    assert metric("loss")(logits, labels) == pytest.approx(expected)
    assert metric("perplexity")(logits, labels) == pytest.approx(math.exp(expected))


def test_a_score_has_higher_for_better() -> None:
    assert metric("mse").score([1.0, 3.0], [0.0, 1.0]) == -2.5
    assert metric("accuracy").score([1], [1]) == 100.0


@law()
@given(LABELS)
def test_accuracy_and_f1_are_their_formulas(pairs: list[tuple[int, int]]) -> None:
    predictions, references = zip(*pairs, strict=True)
    assert metric("accuracy")(predictions, references) == pytest.approx(
        100 * sum(p == r for p, r in pairs) / len(pairs)
    )
    parts = []
    for label in set(predictions) | set(references):
        hits = sum(p == r == label for p, r in pairs)
        parts.append(2 * hits / (predictions.count(label) + references.count(label)))
    assert metric("macro_f1")(predictions, references) == pytest.approx(
        100 * sum(parts) / len(parts)
    )


@law()
@given(LABELS)
def test_matthews_of_two_labels_is_the_correlation(pairs: list[tuple[int, int]]) -> None:
    two = [(p % 2, r % 2) for p, r in pairs]
    predictions, references = zip(*two, strict=True)
    assert metric("matthews")(predictions, references) == pytest.approx(
        metric("pearson")(predictions, references), abs=1e-6
    )


@pytest.mark.parametrize("name", METRICS)
def test_perfect_predictions_are_the_best_value(name: str) -> None:
    found = METRICS[name]
    same: dict[str, tuple[object, object]] = {
        "labels": ([0, 1, 1], [0, 1, 1]),
        "values": ([0.0, 1.0, 5.0], [0.0, 1.0, 5.0]),
        "texts": (["a b c", "d"], ["a b c", "d"]),
        "logits": ([[100.0, 0.0], [0.0, 100.0]], [0, 1]),
    }
    best = {"mse": 0.0, "loss": 0.0, "perplexity": 1.0}.get(name, 100.0)
    assert found(*same[found.takes]) == pytest.approx(best)
    assert (found.unit == "%") == found.higher_is_better


@pytest.mark.parametrize(
    ("wrong", "right"), [("acuracy", "accuracy"), ("rougeL", "rouge_l"), ("f1_macro", "macro_f1")]
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(OptionError, match=f"Did you mean '{right}'"):
        metric(wrong)


@pytest.mark.parametrize(
    ("name", "predictions", "references", "message"),
    [
        ("accuracy", [], [], "0 predictions"),
        ("accuracy", [1], [1, 0], "1 predictions for 2 references"),
        ("f1", [0, 2], [0, 1], "Use 'macro_f1'"),
        ("mse", [float("nan")], [0.0], "diverged"),
        ("pearson", [float("inf"), 1.0], [0.0, 1.0], "diverged"),
        ("loss", [[0.0, 1.0]], [-100], "every label is -100"),
        ("loss", [[0.0, 1.0]], [[0, 1]], r"logits \(1, 2\) for labels \(1, 2\)"),
    ],
)
def test_what_a_metric_is_not_defined_for_is_refused(
    name: str, predictions: list[object], references: list[object], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        metric(name)(predictions, references)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(MissingExtraError, match=r"sharespace\[train\]"):
        metric("accuracy")([1], [1])
