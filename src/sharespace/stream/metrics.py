"""Metrics by name, alone and as ``compute_metrics`` of a transformers Trainer.

scikit-learn, scipy and torchmetrics do the counting (extra ``train``). Agreement is in percent (100
is perfect), so that scores of several tasks can stand in one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
import torch

from sharespace.errors import OptionError
from sharespace.extras import require

Takes = Literal["labels", "values", "texts", "logits"]

_PERCENT = "%"

_Array = np.ndarray[Any, np.dtype[Any]]

IGNORED = -100
"""Label of a token that does not count, as in transformers."""


@dataclass(frozen=True)
class TaskMetric:
    """One way to compare a task's predictions with references."""

    name: str
    takes: Takes
    """``"labels"``: ints [N]; ``"values"``: floats [N]; ``"texts"``: N strings; ``"logits"``:
    floats [..., classes] with int references [...], of which -100 does not count."""
    compute: Callable[[Any, Any], float]
    """(predictions, references) -> value in ``unit``."""
    higher_is_better: bool = True
    unit: str = _PERCENT

    def __call__(self, predictions: Any, references: Any) -> float:
        """The value in ``unit``.

        Raises:
            OptionError: nothing to compare, unequal lengths, or what the metric is not defined for.
            MissingExtraError: the extra ``train`` is not installed.
        """
        if len(predictions) != len(references) or not len(references):
            why = f"{len(predictions)} predictions for {len(references)} references"
            raise OptionError(f"metric {self.name!r}", why, "Give one prediction a reference")
        return self.compute(predictions, references)

    def score(self, predictions: Any, references: Any) -> float:
        """The same with the sign turned where less is better: fit for a ``ScoreMatrix``.

        Args:
            predictions: of a model, as the metric takes them.
            references: what is right, one for each prediction.
        """
        value = self(predictions, references)
        return value if self.higher_is_better else -value


def metric(name: str) -> TaskMetric:
    """The metric of that name.

    Args:
        name: of the metric, for example ``"accuracy"``.

    Raises:
        OptionError: there is none; says the nearest.
    """
    if name not in METRICS:
        nearest = get_close_matches(name, METRICS, n=1, cutoff=0)[0]
        known = ", ".join(METRICS)
        raise OptionError(f"metric {name!r}", f"not one of {known}", f"Did you mean {nearest!r}?")
    return METRICS[name]


def compute_metrics_for(
    wanted: TaskMetric | str, *, tokenizer: Any = None, causal: bool = False
) -> Callable[[Any], dict[str, float]]:
    """A function EvalPrediction -> {name: value}.

    Args:
        wanted: a metric, or its name.
        tokenizer: decodes predicted ids, for metrics of texts (``predict_with_generate``).
        causal: the logits at a token predict the next one, for metrics of logits and labels.

    Labels of -100 do not count. Logits become labels by argmax; ids stay as they are (from
    ``preprocess_logits_for_metrics``, which spares the memory of all logits).

    Raises:
        OptionError: no such metric, or one of texts without a tokenizer; the function itself
            raises it where the model's outputs do not fit the metric.
    """
    used = metric(wanted) if isinstance(wanted, str) else wanted
    if used.takes == "texts" and tokenizer is None:
        raise OptionError(f"metric {used.name!r}", "compares texts", "Give the tokenizer")

    def compute(evaluated: Any) -> dict[str, float]:
        outputs, references = _first(evaluated.predictions), _first(evaluated.label_ids)
        if causal:
            outputs, references = outputs[:, :-1], references[:, 1:]
        if used.takes == "texts":
            pair: tuple[Any, Any] = _texts(outputs, tokenizer), _texts(references, tokenizer)
        elif used.takes == "values":
            pair = outputs.reshape(-1), references.reshape(-1)
        elif used.takes == "labels":
            pair = _labels(outputs, references)
        else:
            pair = outputs, references
        return {used.name: used(*pair)}

    return compute


def _first(outputs: Any) -> _Array:
    """The logits, where a model gives more than those."""
    return np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)


def _labels(outputs: _Array, references: _Array) -> tuple[_Array, _Array]:
    if np.issubdtype(outputs.dtype, np.floating):
        if outputs.shape[-1] < 2 or outputs.ndim != references.ndim + 1:
            why = f"outputs {outputs.shape} for labels {references.shape}"
            raise OptionError("predictions", why, "A metric of labels needs logits [..., classes]")
        if np.isnan(outputs).any():
            raise OptionError("predictions", "logits that are NaN", "The training has diverged")
        outputs = outputs.argmax(axis=-1)
    if outputs.shape != references.shape:
        why = f"labels {outputs.shape} for labels {references.shape}"
        raise OptionError("predictions", why, "Give one a reference")
    counts = references != IGNORED
    return outputs[counts], references[counts]


def _texts(ids: _Array, tokenizer: Any) -> list[str]:
    if not np.issubdtype(ids.dtype, np.integer):
        remedy = "Evaluate with predict_with_generate=True"
        raise OptionError("predictions", "logits, where texts are compared", remedy)
    known = np.where(ids == IGNORED, tokenizer.pad_token_id, ids)
    decoded: list[str] = tokenizer.batch_decode(known, skip_special_tokens=True)
    return decoded


def _accuracy(predictions: Any, references: Any) -> float:
    return 100 * float(_sklearn().accuracy_score(references, predictions))


def _matthews(predictions: Any, references: Any) -> float:
    """Matthews correlation; 0 for constant predictions (scikit-learn's convention)."""
    if len(np.union1d(predictions, references)) < 2:
        return 0.0  # scikit-learn returns it too, but with a warning.
    return 100 * float(_sklearn().matthews_corrcoef(references, predictions))


def _f1(predictions: Any, references: Any) -> float:
    """Of label 1; 0 where it neither occurs nor is predicted."""
    beyond = set(np.unique(predictions)) | set(np.unique(references))
    if not beyond <= {0, 1}:
        why = f"labels {sorted(int(x) for x in beyond)}"
        raise OptionError("metric 'f1'", f"{why}, and it is of labels 0 and 1", "Use 'macro_f1'")
    return 100 * float(_sklearn().f1_score(references, predictions, zero_division=0.0))


def _macro_f1(predictions: Any, references: Any) -> float:
    """Mean of the labels that occur or are predicted."""
    mean = _sklearn().f1_score(references, predictions, average="macro", zero_division=0.0)
    return 100 * float(mean)


def _pearson(predictions: Any, references: Any) -> float:
    return _correlation("pearsonr", predictions, references)


def _spearman(predictions: Any, references: Any) -> float:
    return _correlation("spearmanr", predictions, references)


def _pearson_spearman(predictions: Any, references: Any) -> float:
    """Their mean, as GLUE scores STS-B."""
    return (_pearson(predictions, references) + _spearman(predictions, references)) / 2


def _mse(predictions: Any, references: Any) -> float:
    return float(_sklearn().mean_squared_error(_finite(references), _finite(predictions)))


def _rouge_l(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Mean F-measure of the longest common subsequence of words, without stemming.

    Lin, "ROUGE", 2004. torchmetrics needs neither nltk nor a download for this one.
    """
    rouge = require("torchmetrics.functional.text", "train").rouge_score
    scores = rouge(list(predictions), list(references), rouge_keys="rougeL")
    return 100 * float(scores["rougeL_fmeasure"])


def _exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Equal but for white space at both ends."""
    same = [a.strip() == b.strip() for a, b in zip(predictions, references, strict=True)]
    return 100 * sum(same) / len(same)


def _loss(predictions: Any, references: Any) -> float:
    """Cross entropy a token (or example), in nats."""
    logits, labels = torch.as_tensor(predictions), torch.as_tensor(references).long()
    if logits.shape[:-1] != labels.shape:
        why = f"logits {tuple(logits.shape)} for labels {tuple(labels.shape)}"
        raise OptionError("metric 'loss'", why, "Give logits [..., classes] for labels [...]")
    if bool((labels == IGNORED).all()):
        raise OptionError("metric 'loss'", "every label is -100", "Keep some that count")
    flat = logits.reshape(-1, logits.shape[-1]).double()
    entropy = torch.nn.functional.cross_entropy(flat, labels.reshape(-1), ignore_index=IGNORED)
    return float(entropy)


def _perplexity(predictions: Any, references: Any) -> float:
    """exp of the loss."""
    return float(torch.tensor(_loss(predictions, references), dtype=torch.float64).exp())


def _correlation(name: str, predictions: Any, references: Any) -> float:
    """0 where one side is constant: such predictions tell nothing, as with Matthews."""
    pair = [_finite(predictions), _finite(references)]
    if any(np.ptp(side) == 0 for side in pair):
        return 0.0
    # Standardised: scipy warns of values that are far from 0 next to their spread.
    scaled = [(side - side.mean()) / side.std() for side in pair]
    return 100 * float(getattr(require("scipy.stats", "train"), name)(*scaled).statistic)


def _finite(values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    numbers = np.asarray(values, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise OptionError("predictions", "not all finite", "The training has diverged")
    return numbers


def _sklearn() -> Any:
    return require("sklearn.metrics", "train")


METRICS: dict[str, TaskMetric] = {
    known.name: known
    for known in (
        TaskMetric("accuracy", "labels", _accuracy),
        TaskMetric("matthews", "labels", _matthews),
        TaskMetric("f1", "labels", _f1),
        TaskMetric("macro_f1", "labels", _macro_f1),
        TaskMetric("pearson", "values", _pearson),
        TaskMetric("spearman", "values", _spearman),
        TaskMetric("pearson_spearman", "values", _pearson_spearman),
        TaskMetric(
            "mse", "values", _mse, higher_is_better=False, unit="square of the value's unit"
        ),
        TaskMetric("rouge_l", "texts", _rouge_l),
        TaskMetric("exact_match", "texts", _exact_match),
        TaskMetric("loss", "logits", _loss, higher_is_better=False, unit="nats"),
        TaskMetric("perplexity", "logits", _perplexity, higher_is_better=False, unit="exp(nats)"),
    )
}
"""All metrics by name; below the functions that they name."""
