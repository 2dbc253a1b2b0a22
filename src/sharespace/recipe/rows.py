"""A task's rows as the `datasets` library reads them: files, folders, or the Hub."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, NoReturn

from sharespace.errors import RecipeError
from sharespace.extras import require
from sharespace.recipe.schema import TaskSpec
from sharespace.recipe.source import Source

FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
EVAL_SPLITS = ("validation", "valid", "dev", "eval", "test")
LABELS = "labels.txt"
KNOWN = ", ".join(FORMATS)
Splits = Mapping[str, Any]
"""Split -> a ``datasets.Dataset``."""


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
    splits = _splits(spec, spec.data)
    settings, train, held = spec.settings, None, None
    if spec.learns or settings.eval_fraction is not None:
        train = _split(spec, splits, settings.train_split, "train_split")
    if spec.eval_data is not None:
        held = _one(spec, "eval_data", _splits_of_files(spec, "eval_data", spec.eval_data))
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


def refuse(spec: TaskSpec, key: str, why: str) -> NoReturn:
    """
    Raises:
        RecipeError: always; with the task, its line and the key.
    """
    line = f"line {spec.line}: " if spec.line else ""
    raise RecipeError("recipe", (f"{line}task {spec.name!r}, {key}: {why}",))


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
    if not len(splits[name]):
        refuse(spec, "data", f"the split {name!r} is empty")
    return splits[name]


def _one(spec: TaskSpec, key: str, splits: Splits) -> Any:
    if len(splits) != 1:
        refuse(spec, key, f"one file is wanted, not a folder with {', '.join(splits) or 'nothing'}")
    return _split(spec, splits, next(iter(splits)), key)


def _splits(spec: TaskSpec, source: Source) -> Splits:
    if not source.is_local:
        return _load(spec, "data", source.text, name=spec.data_config, revision=spec.data_revision)
    for key in ("data_config", "data_revision"):
        if getattr(spec, key) is not None:
            refuse(spec, key, f"is for the Hub, but {source.text!r} is local")
    return _splits_of_files(spec, "data", source)


def _splits_of_files(spec: TaskSpec, key: str, source: Source) -> Splits:
    if source.path.is_file():
        files = {spec.settings.train_split if spec.learns else "test": [source.path]}
    elif source.path.is_dir():
        if spec.settings.task_type == "image-classification" and _is_image_folder(source.path):
            return _load(spec, key, "imagefolder", local=True, data_dir=str(source.path))
        files = _files(source.path)
    else:
        refuse(spec, key, f"{source.text!r} is no file, folder or data set on the Hub")
    formats = {_format(path) for paths in files.values() for path in paths}
    if len(formats) != 1 or "" in formats:
        refuse(spec, key, f"{source.text!r} has no file of one known format ({KNOWN})")
    paths = {name: [escape(str(p)) for p in found] for name, found in files.items()}
    first = next(iter(files.values()))[0]
    options = {"sep": "\t"} if _suffix(first) == ".tsv" else {}
    return _load(spec, key, formats.pop(), local=True, data_files=paths, **options)


def _files(folder: Path) -> dict[str, list[Path]]:
    """Split -> its files: ``test.jsonl.gz``, ``train-00000-of-00002.parquet`` ..."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*")):
        if path.is_file() and _format(path) and path.name != LABELS and _is_data(path):
            name = path.name.split(".")[0].split("-0")[0]
            found.setdefault(name, []).append(path)
    return found


def _is_data(path: Path) -> bool:
    return _suffix(path) != ".txt" or path.stem.lower() not in ("readme", "license", "licence")


def _is_image_folder(folder: Path) -> bool:
    return any(p.is_dir() and not p.name.startswith(".") for p in folder.iterdir())


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _format(path: Path) -> str:
    return FORMATS.get(_suffix(path), "")


def _load(spec: TaskSpec, key: str, what: str, *, local: bool = False, **options: Any) -> Splits:
    """``datasets.load_dataset``, quietly; its many ways to fail as one error."""
    datasets = require("datasets", "train")
    try:
        with quiet(), tempfile.TemporaryDirectory() as folder:
            # A cached copy would outlive the data, which is to be gone once a task is learned.
            cache = {"cache_dir": folder} if local else {}
            splits: Splits = datasets.load_dataset(
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


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, and no log lines beside the one error."""
    datasets = require("datasets", "train")
    bars = not datasets.are_progress_bars_disabled()
    logger = logging.getLogger("datasets")
    level = logger.level
    datasets.disable_progress_bars()
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
