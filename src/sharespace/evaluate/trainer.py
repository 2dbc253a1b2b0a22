"""A metric as ``compute_metrics`` of a transformers Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sharespace.errors import OptionError
from sharespace.evaluate.metrics import IGNORED, Metric, metric

_Array = np.ndarray[Any, np.dtype[Any]]


def compute_metrics_for(
    wanted: Metric | str, *, tokenizer: Any = None, causal: bool = False
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
    found = metric(wanted) if isinstance(wanted, str) else wanted
    if found.takes == "texts" and tokenizer is None:
        raise OptionError(f"metric {found.name!r}", "compares texts", "Give the tokenizer")

    def compute(evaluated: Any) -> dict[str, float]:
        outputs, references = _first(evaluated.predictions), _first(evaluated.label_ids)
        if causal:
            outputs, references = outputs[:, :-1], references[:, 1:]
        if found.takes == "texts":
            pair: tuple[Any, Any] = _texts(outputs, tokenizer), _texts(references, tokenizer)
        elif found.takes == "values":
            pair = outputs.reshape(-1), references.reshape(-1)
        elif found.takes == "labels":
            pair = _labels(outputs, references)
        else:
            pair = outputs, references
        return {found.name: found(*pair)}

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
