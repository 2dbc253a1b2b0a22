"""The rows that a task learns from and is scored on, as the library ``datasets`` reads them.

They come from files, folders or data sets on the Hub.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path

from sharespace.extras import require
from sharespace.learn.training import quiet
from sharespace.protocols import RowTable
from sharespace.stream.recipe.keys import TaskSpec
from sharespace.stream.recipe.load import refuse
from sharespace.stream.recipe.values import RecipeSource

FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}

LABELS = "labels.txt"
"""File beside data that names the classes, one a line."""

NOT_DATA = ("readme", "license", "licence", "labels")
"""Names of texts that lie beside data."""

KNOWN = ", ".join(FORMATS)

Splits = Mapping[str, Callable[[], RowTable]]
"""Split -> what reads it as a ``datasets.Dataset``."""

EVAL_SPLITS = ("validation", "valid", "dev", "eval", "test")
"""Splits to score on; the first that is there is taken."""


@dataclass(frozen=True)
class TaskRows:
    """A task's rows to learn from and rows to score on, untouched; None: it uses none."""

    train: RowTable | None
    """A ``datasets.Dataset``."""
    eval: RowTable
    """A ``datasets.Dataset``."""
    label_file: tuple[str, ...] | None = None
    """Names of the classes in ``labels.txt`` beside the data."""


def read_rows(spec: TaskSpec) -> TaskRows:
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
    return TaskRows(train if spec.learns else None, held, _label_file(spec, spec.data))


def _parted(spec: TaskSpec, part: RowTable, fraction: float) -> tuple[RowTable, RowTable]:
    """The train split without the rows that are set aside for scoring, and these."""
    if len(part) < 2:
        refuse(spec, "eval_fraction", "the train split has one row only")
    held = min(max(1, round(fraction * len(part))), len(part) - 1)
    parts = part.train_test_split(test_size=held, seed=spec.seed, keep_in_memory=True)
    return parts["train"], parts["test"]


def _eval_name(spec: TaskSpec, splits: Splits) -> str:
    """The split that the task is scored on."""
    if spec.settings.eval_split is not None:
        return spec.settings.eval_split
    known = [n for n in EVAL_SPLITS if n in splits]
    if not known:
        refuse(spec, "data", "no split to score on: give eval_data, eval_split or eval_fraction")
    return known[0]


def _split(spec: TaskSpec, splits: Splits, name: str, key: str) -> RowTable:
    """The rows of a split, at least one."""
    if name not in splits:
        refuse(spec, key, f"the data has no split {name!r}, but {', '.join(splits) or 'none'}")
    part = splits[name]()
    if not len(part):
        refuse(spec, "data", f"the split {name!r} has no rows")
    return part


def _one(spec: TaskSpec, key: str, splits: Splits) -> RowTable:
    """The rows of the only split."""
    if len(splits) != 1:
        refuse(spec, key, f"one file is wanted, not a folder with {', '.join(splits) or 'nothing'}")
    return _split(spec, splits, next(iter(splits)), key)


def _label_file(spec: TaskSpec, source: RecipeSource) -> tuple[str, ...] | None:
    """Names of the classes in ``labels.txt``; None: there is no such file."""
    folder = source.path if source.path.is_dir() else source.path.parent
    file = folder / LABELS
    if not source.is_local or not file.is_file():
        return None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        refuse(spec, "data", f"{LABELS} cannot be read ({error})")
    return tuple(line.strip() for line in lines if line.strip())


def find_splits(spec: TaskSpec, key: str, source: RecipeSource) -> Splits:
    """The splits that are there; a local file is read when its split is asked for.

    Args:
        spec: the task.
        key: ``"data"`` or ``"eval_data"``, for errors.
        source: what the task has under that key.

    Raises:
        RecipeError: there is nothing there, or nothing that can be read.
        MissingExtraError: ``datasets`` is not installed.
    """
    if not source.is_local:
        config, revision = spec.data_config, spec.data_revision
        return _taken(_load(spec, key, source.text, name=config, revision=revision))
    for name in ("data_config", "data_revision") if key == "data" else ():
        if getattr(spec, name) is not None:
            refuse(spec, name, f"is for the Hub, but {source.text!r} is local")
    path = source.path
    if path.is_dir() and spec.settings.task_type == "image-classification" and _has_folders(path):
        return _taken(_load(spec, key, "imagefolder", local=True, data_dir=str(path)))
    files = _files(spec, path)
    if not files:
        there = f"has no file of a known format ({KNOWN})"
        why = there if path.exists() else "is no file, folder or data set on the Hub"
        refuse(spec, key, f"{source.text!r} {why}")
    # One by one: a split that is not used may have other columns, or be broken.
    return {name: partial(_read, spec, key, of_split) for name, of_split in files.items()}


def _taken(splits: Mapping[str, RowTable]) -> Splits:
    """Splits that are read already."""
    return {name: partial(splits.__getitem__, name) for name in splits}


def _files(spec: TaskSpec, path: Path) -> dict[str, list[Path]]:
    """Split -> its files: ``test.jsonl.gz``, ``train-00000-of-00002.parquet`` ..."""
    if path.is_file():
        name = spec.settings.train_split if spec.learns else "test"
        return {name: [path]} if _suffix(path) in FORMATS else {}
    files: dict[str, list[Path]] = {}
    for file in sorted(path.glob("*")):
        if file.is_file() and _suffix(file) in FORMATS and file.stem.lower() not in NOT_DATA:
            files.setdefault(file.name.split(".")[0].split("-0")[0], []).append(file)
    return files


def _read(spec: TaskSpec, key: str, files: list[Path]) -> RowTable:
    """The rows of one split's files, which have one format."""
    suffixes = {_suffix(file) for file in files}
    if len(suffixes) > 1:
        names = ", ".join(file.name for file in files)
        refuse(spec, key, f"files of several formats for one split: {names}")
    (suffix,) = suffixes
    options = {"sep": "\t"} if suffix == ".tsv" else {}
    paths = [escape(str(file)) for file in files]
    return _load(spec, key, FORMATS[suffix], local=True, data_files=paths, **options)["train"]


def _has_folders(path: Path) -> bool:
    """True for a folder of folders: one for each class of images."""
    return any(p.is_dir() and not p.name.startswith(".") for p in path.glob("*"))


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _load(
    spec: TaskSpec, key: str, what: str, *, local: bool = False, **options: object
) -> Mapping[str, RowTable]:
    """``datasets.load_dataset``, quietly; its many ways to fail as one error."""
    datasets = require("datasets", "train")
    try:
        with quiet(), tempfile.TemporaryDirectory() as folder:
            # A cached copy would outlive the data, which is to be gone once a task is learned.
            cache = {"cache_dir": folder} if local else {}
            splits: Mapping[str, RowTable] = datasets.load_dataset(
                what, keep_in_memory=local or None, **options, **cache
            )
            return splits
    except StopIteration:
        refuse(spec, key, "has no rows")
    except (
        datasets.exceptions.DatasetsError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as error:
        source = getattr(spec, key)
        tail = "" if local else "; neither a path that exists nor a data set that the Hub gives"
        refuse(spec, key, f"{source.text!r} cannot be read ({_reason(error)}){tail}")


def _reason(error: BaseException) -> str:
    """The first cause, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
