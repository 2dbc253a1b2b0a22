"""Scores of a stream, from the folder that ``sharespace run`` keeps beside its Share model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sharespace.errors import CorruptStoreError, OptionError
from sharespace.evaluate import ScoreMatrix
from sharespace.page.facts import Scores
from sharespace.store.layout import Content
from sharespace.stream.files import read_json
from sharespace.stream.folder import FORMAT
from sharespace.stream.records import Step, content_digest


def stored_scores(share: Path, content: Content) -> Scores | None:
    """The scores of the steps that led to a version.

    Args:
        share: the store.
        content: of the version.

    Returns:
        None where no stream made this version (a version that was changed by hand since, too), or
        where it has no task with data.

    Raises:
        CorruptStoreError: a record is damaged.
    """
    folder = share.with_name(f"{share.name}.run")
    if not (folder / "stream.json").is_file():
        return None
    steps = _steps(folder / "steps", content_digest(content))
    recipe = read_json(folder / "stream.json")
    columns = _columns(recipe, folder, {task for step in steps for task in step.scores})
    if not columns:
        return None
    notices = dict.fromkeys(text for step in steps for text in step.notices)
    return Scores(_matrix(steps, list(columns), folder), columns, tuple(notices))


def _steps(folder: Path, content: str) -> Sequence[Step]:
    """The chain of records that ends with this content; none where no chain does."""
    chain: list[Step] = []
    for step in _records(folder):
        if step.parent != (chain[-1].content if chain else None):
            return ()
        chain.append(step)
        if step.content == content:
            return chain
    return ()


def _records(folder: Path) -> Iterator[Step]:
    numbered = [path for path in folder.glob("*.json") if path.stem.isdecimal()]
    for path in sorted(numbered, key=lambda p: int(p.stem)):
        yield Step.from_record(read_json(path), str(path))


def _columns(recipe: Any, folder: Path, scored: set[str]) -> Mapping[str, str]:
    """Scored task -> its metric as the recipe states it, in the order of the recipe."""
    try:
        if recipe["format"] != FORMAT:
            raise KeyError(recipe["format"])
        stated = {str(t["name"]): t.get("metric") or "" for t in recipe["tasks"]}
    except (TypeError, KeyError, AttributeError) as error:
        why = f"no record of a stream ({error})"
        raise CorruptStoreError(
            str(folder / "stream.json"), why, "Bring the file back as it was"
        ) from error
    return {name: metric for name, metric in stated.items() if name in scored}


def _matrix(steps: Sequence[Step], tasks: Sequence[str], folder: Path) -> ScoreMatrix:
    learned = {task: at for at, step in enumerate(steps) for task in step.tasks}
    try:
        return ScoreMatrix(
            tasks=tuple(tasks),
            steps=tuple(step.name for step in steps),
            scores=tuple(tuple(step.scores.get(t) for t in tasks) for step in steps),
            learned=tuple(learned.get(t) for t in tasks),
        )
    except (OptionError, TypeError) as error:
        raise CorruptStoreError(
            str(folder), f"its records do not fit together: {error}", "Bring them back as they were"
        ) from error
