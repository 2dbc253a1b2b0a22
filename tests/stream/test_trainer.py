"""Metrics inside a transformers Trainer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sharespace.errors import OptionError
from sharespace.stream.metrics import compute_metrics_for, metric

ONE_HOT = np.eye(3)


class Tokenizer:
    """Ids are letters; 0 is padding."""

    pad_token_id = 0

    def batch_decode(self, ids: Any, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return ["".join(chr(96 + i) for i in row if i) for row in ids]


def evaluated(predictions: Any, label_ids: Any) -> Any:
    return SimpleNamespace(predictions=predictions, label_ids=np.asarray(label_ids))


def test_logits_become_labels() -> None:
    compute = compute_metrics_for("accuracy")
    assert compute(evaluated(ONE_HOT[[0, 1, 1, 2]], [0, 1, 2, 2])) == {"accuracy": 75.0}


def test_ids_stay_as_they_are_and_further_outputs_are_left_out() -> None:
    compute = compute_metrics_for(metric("accuracy"))
    assert compute(evaluated(np.array([0, 1]), [0, 1])) == {"accuracy": 100.0}
    assert compute(evaluated((ONE_HOT[[0, 1]], "hidden"), [0, 1])) == {"accuracy": 100.0}


def test_tokens_of_minus_100_do_not_count() -> None:
    compute = compute_metrics_for("accuracy")
    assert compute(evaluated(ONE_HOT[[[0, 1], [2, 0]]], [[0, 2], [-100, -100]])) == {
        "accuracy": 50.0
    }


def test_a_causal_model_predicts_the_next_token() -> None:
    tokens = np.array([[0, 1, 2, 0]])
    following = ONE_HOT[[[1, 2, 0, 1]]]
    assert compute_metrics_for("accuracy", causal=True)(evaluated(following, tokens)) == {
        "accuracy": 100.0
    }
    sure = compute_metrics_for("perplexity", causal=True)(evaluated(100 * following, tokens))
    assert sure["perplexity"] == pytest.approx(1.0)


def test_values_lose_their_last_axis() -> None:
    compute = compute_metrics_for("mse")
    assert compute(evaluated(np.array([[1.0], [3.0]]), [0.0, 1.0])) == {"mse": 2.5}


def test_texts_are_decoded() -> None:
    compute = compute_metrics_for("exact_match", tokenizer=Tokenizer())
    found = compute(evaluated(np.array([[1, 2, -100], [3, 0, 0]]), [[1, 2, 0], [4, -100, 0]]))
    assert found == {"exact_match": 50.0}


@pytest.mark.parametrize(
    ("name", "predictions", "labels", "message"),
    [
        ("accuracy", np.zeros((2, 1)), [0, 1], "needs logits"),
        ("accuracy", np.zeros((2, 3)), [[0, 1]], "needs logits"),
        ("accuracy", np.zeros(2, dtype=int), [0, 1, 1], "one a reference"),
        ("accuracy", np.full((2, 3), np.nan), [0, 1], "diverged"),
        ("rouge_l", np.zeros((2, 3, 5)), [[0], [1]], "predict_with_generate"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(
    name: str, predictions: Any, labels: Any, message: str
) -> None:
    compute = compute_metrics_for(name, tokenizer=Tokenizer())
    with pytest.raises(OptionError, match=message):
        compute(evaluated(predictions, labels))


def test_texts_need_a_tokenizer() -> None:
    with pytest.raises(OptionError, match="Give the tokenizer"):
        compute_metrics_for("rouge_l")


class Copies(nn.Module):
    """Predicts its input, wrong by one for negative ones."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.scale * torch.eye(4)[x.abs() + (x < 0)]
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_real_trainer_reports_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra train")
    pairs = [(0, 0), (1, 1), (-1, 1), (-2, 2), (2, 2)]
    rows = [{"x": torch.tensor(x), "labels": torch.tensor(y)} for x, y in pairs]
    trainer = transformers.Trainer(
        Copies(),
        transformers.TrainingArguments(
            str(tmp_path), report_to=[], use_cpu=True, per_device_eval_batch_size=2
        ),
        eval_dataset=rows,
        compute_metrics=compute_metrics_for("accuracy"),
    )
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(60.0)
