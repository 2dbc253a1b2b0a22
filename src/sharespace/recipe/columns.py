"""The columns of a task's rows: are they there, and do they hold what they should?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from sharespace.recipe.labels import label_names, numbers
from sharespace.recipe.refusal import refuse
from sharespace.recipe.rows import Rows
from sharespace.recipe.schema import TaskSpec
from sharespace.recipe.values import hint

TEXT2 = "text2"


def inputs(spec: TaskSpec, part: Any) -> tuple[str, ...]:
    """Columns that go into the model: a text, a pair, prompt and completion, or an image.

    Args:
        part: a ``datasets.Dataset``.
    """
    s = spec.settings
    if s.task_type == "image-classification":
        return (s.image,)
    if s.task_type == "causal-lm":
        return (s.prompt, s.completion) if s.prompt and s.completion else (s.text,)
    if s.text2 is not None:
        return (s.text, s.text2)
    pair = TEXT2 in part.column_names and s.text != TEXT2
    return (s.text, TEXT2) if pair else (s.text,)


def check_columns(spec: TaskSpec, rows: Rows) -> None:
    """
    Raises:
        RecipeError: a column is missing, or has another type.
    """
    for split, part in parts(rows):
        names = inputs(spec, part)
        labelled = () if spec.settings.task_type == "causal-lm" else (spec.settings.label,)
        for name in (*names, *labelled):
            _present(spec, part, name, split)
        for name in names:
            _type(spec, part, name, split)


def parts(rows: Rows) -> list[tuple[str, Any]]:
    """The splits that are there, by what they are for."""
    both = (("train", rows.train), ("eval", rows.eval))
    return [(name, part) for name, part in both if part is not None]


def targets(spec: TaskSpec, rows: Rows) -> tuple[tuple[str, ...], dict[str, list[Any]]]:
    """Names of the classes, and split -> the label of each row: int, or float for regression.

    Empty for ``causal-lm``.

    Raises:
        RecipeError: a label is missing, or is no label.
    """
    kind, column = spec.settings.task_type, spec.settings.label
    if kind == "causal-lm":
        return (), {}
    if kind == "regression":
        return (), {s: _floats(spec, p[column], s) for s, p in parts(rows)}
    names = label_names(spec, rows)
    return names, {s: numbers(spec, names, p[column], s) for s, p in parts(rows)}


def texts(spec: TaskSpec, column: str, values: Sequence[Any]) -> list[str]:
    """The values, all of them text.

    Raises:
        RecipeError: one is null.
    """
    for value in values:
        if not isinstance(value, str):
            refuse(spec, "data", f"column {column!r} has a row with {value!r} in place of a text")
    return list(values)


def _present(spec: TaskSpec, part: Any, name: str, split: str) -> None:
    if name not in part.column_names:
        columns = ", ".join(part.column_names)
        guess = hint(name, tuple(part.column_names))
        refuse(spec, "data", f"the {split} split has no column {name!r}, but {columns}{guess}")


def _type(spec: TaskSpec, part: Any, name: str, split: str) -> None:
    feature = part.features[name]
    image = spec.settings.task_type == "image-classification"
    kind = type(feature).__name__ if image else str(getattr(feature, "dtype", feature))
    if kind not in (("Image",) if image else ("string", "large_string")):
        wanted = "images" if image else "texts"
        refuse(spec, "data", f"column {name!r} of the {split} split holds no {wanted} ({kind})")


def _floats(spec: TaskSpec, values: Iterable[Any], split: str) -> list[float]:
    found = []
    for row, value in enumerate(values, 1):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            refuse(spec, "label", f"{split} row {row} has {value!r:.40}, no number")
        found.append(float(value))
    return found
