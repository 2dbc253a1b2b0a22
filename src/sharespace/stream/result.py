"""What a stream gave: scores of all steps, measures, sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharespace.errors import OptionError
from sharespace.evaluate import ScoreMatrix, metric
from sharespace.evaluate.measures import acc, backward_transfer, forgetting
from sharespace.recipe import Recipe
from sharespace.stream.present import present
from sharespace.stream.records import Learned, Step
from sharespace.stream.routed import RouterResult

_MEASURES: dict[str, Callable[[ScoreMatrix], float]] = {
    "acc": acc,
    "bwt": backward_transfer,
    "forgetting": forgetting,
}


@dataclass(frozen=True)
class TaskScore:
    """A task's metric, and its scores as the metric has them (a loss is positive)."""

    metric: str
    unit: str
    higher_is_better: bool
    first: float | None
    """After the step that learned it."""
    last: float | None
    """After the last step."""


@dataclass(frozen=True, eq=False)
class StreamResult:
    """A stream that was run to its end."""

    share: Path
    version: int
    """Of the store."""
    steps: tuple[Step, ...]
    matrix: ScoreMatrix | None
    """Columns: the tasks with data. Higher is better: a loss has its sign turned. None: no task
    has data."""
    scores: Mapping[str, TaskScore]
    """Task with data -> its scores."""
    router: RouterResult | None = None
    """None: the recipe asks for none."""

    @property
    def learned(self) -> tuple[Learned, ...]:
        """How each task came in, in the order of the stream."""
        return tuple(one for step in self.steps for one in step.learned)

    @property
    def notices(self) -> tuple[str, ...]:
        """Why scores are missing, and which tasks the router does not know, each once."""
        found = [text for step in self.steps for text in step.notices]
        return tuple(dict.fromkeys([*found, *(self.router.notices if self.router else ())]))

    @property
    def measures(self) -> dict[str, float | None]:
        """``acc``, ``bwt`` and ``forgetting`` (see Concepts); None where a score is missing."""
        return {name: _measured(self.matrix, of) for name, of in _MEASURES.items()}


def result_of(
    recipe: Recipe, steps: Sequence[Step], version: int, router: RouterResult | None
) -> StreamResult:
    """The result of a stream whose steps are all committed."""
    columns = tuple(spec.name for spec in recipe.tasks if spec.data is not None)
    matrix = _matrix(columns, steps) if columns else None
    found = {}
    for at, name in enumerate(columns):
        spec = present(recipe.task(name), f"task {name!r} of the recipe")
        matrix = present(matrix, "the scores")
        wanted = metric(spec.settings.score)
        sign = 1 if wanted.higher_is_better else -1
        step = matrix.learned[at] or 0
        first, last = matrix.scores[step][at], matrix.scores[-1][at]
        found[name] = TaskScore(
            wanted.name,
            wanted.unit,
            wanted.higher_is_better,
            None if first is None else sign * first,
            None if last is None else sign * last,
        )
    return StreamResult(recipe.share, version, tuple(steps), matrix, found, router)


def _matrix(columns: tuple[str, ...], steps: Sequence[Step]) -> ScoreMatrix:
    learned: dict[str, Any] = {t: i for i, step in enumerate(steps) for t in step.tasks}
    return ScoreMatrix(
        tasks=columns,
        steps=tuple(step.name for step in steps),
        scores=tuple(tuple(step.scores.get(t) for t in columns) for step in steps),
        learned=tuple(learned[t] for t in columns),
    )


def _measured(matrix: ScoreMatrix | None, measure: Callable[[ScoreMatrix], float]) -> float | None:
    if matrix is None:
        return None
    try:
        return measure(matrix)
    except OptionError:
        return None  # a score is missing; the result's notices say why
