"""The rows that a task learns from and the rows that it is scored on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sharespace.recipe.refusal import refuse
from sharespace.recipe.schema import TaskSpec
from sharespace.recipe.source import Source
from sharespace.recipe.splits import LABELS, Splits, find_splits

EVAL_SPLITS = ("validation", "valid", "dev", "eval", "test")


@dataclass(frozen=True)
class Rows:
    """Rows to learn from and rows to score on, untouched; None: the task uses none."""

    train: Any
    """A ``datasets.Dataset``."""
    eval: Any
    """A ``datasets.Dataset``."""
    label_file: tuple[str, ...] | None = None
    """Names of the classes in ``labels.txt`` beside the data."""


def read_rows(spec: TaskSpec) -> Rows:
    """All rows of a task's splits, in memory; local files leave no copy in any cache.

    Args:
        spec: has data.

    Raises:
        RecipeError: data is missing, cannot be read, or lacks a split.
        MissingExtraError: ``datasets`` is not installed.
    """
    if spec.data is None:
        refuse(spec, "data", "there is none")
    splits = find_splits(spec, "data", spec.data)
    settings, train, held = spec.settings, None, None
    if spec.learns or settings.eval_fraction is not None:
        train = _split(spec, splits, settings.train_split, "train_split")
    if spec.eval_data is not None:
        held = _one(spec, "eval_data", find_splits(spec, "eval_data", spec.eval_data))
    elif train is not None and settings.eval_fraction is not None:
        train, held = _parted(spec, train, settings.eval_fraction)
    else:
        held = _split(spec, splits, _eval_name(spec, splits), "eval_split")
    return Rows(train if spec.learns else None, held, _label_file(spec, spec.data))


def _parted(spec: TaskSpec, part: Any, fraction: float) -> tuple[Any, Any]:
    if len(part) < 2:
        refuse(spec, "eval_fraction", "the train split has one row only")
    held = min(max(1, round(fraction * len(part))), len(part) - 1)
    parts = part.train_test_split(test_size=held, seed=spec.seed, keep_in_memory=True)
    return parts["train"], parts["test"]


def _eval_name(spec: TaskSpec, splits: Splits) -> str:
    if spec.settings.eval_split is not None:
        return spec.settings.eval_split
    known = [n for n in EVAL_SPLITS if n in splits]
    if not known:
        refuse(spec, "data", "no split to score on: give eval_data, eval_split or eval_fraction")
    return known[0]


def _split(spec: TaskSpec, splits: Splits, name: str, key: str) -> Any:
    if name not in splits:
        refuse(spec, key, f"the data has no split {name!r}, but {', '.join(splits) or 'none'}")
    part = splits[name]()
    if not len(part):
        refuse(spec, "data", f"the split {name!r} has no rows")
    return part


def _one(spec: TaskSpec, key: str, splits: Splits) -> Any:
    if len(splits) != 1:
        refuse(spec, key, f"one file is wanted, not a folder with {', '.join(splits) or 'nothing'}")
    return _split(spec, splits, next(iter(splits)), key)


def _label_file(spec: TaskSpec, source: Source) -> tuple[str, ...] | None:
    folder = source.path if source.path.is_dir() else source.path.parent
    file = folder / LABELS
    if not source.is_local or not file.is_file():
        return None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        refuse(spec, "data", f"{LABELS} cannot be read ({error})")
    return tuple(line.strip() for line in lines if line.strip())
