"""What the run of a recipe tells, records and returns.

While it runs it tells an observer of every ``Event``. Each ``Step`` is recorded as JSON in the
folder ``steps`` of the run (``folder``), and at the end all of them are a ``StreamResult``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeAlias, TypeVar

from sharespace.errors import CorruptStoreError, OptionError
from sharespace.learn import Fit, Trainable
from sharespace.store.schema import Content
from sharespace.stream.loop import step_name
from sharespace.stream.measures import ScoreMatrix, acc, backward_transfer, forgetting
from sharespace.stream.metrics import metric
from sharespace.stream.recipe import Recipe, TaskSpec

_MEASURES: dict[str, Callable[[ScoreMatrix], float]] = {
    "acc": acc,
    "bwt": backward_transfer,
    "forgetting": forgetting,
}
"""Name -> measure of the continual-learning literature, in ``StreamResult.measures``."""

T = TypeVar("T")

How = Literal["adapter", "lora", "data", "both"]

Stage = Literal[
    "checking",
    "resumed",
    "learning",
    "kept",
    "learned",
    "merged",
    "unscored",
    "scored",
    "recorded",
    "committed",
    "routed",
]


@dataclass(frozen=True)
class Event:
    """Something that has just happened; what comes after it has not begun."""

    stage: Stage
    """``kept``: an initial task's LoRA is on disk. ``recorded``: the step's record is on disk, its
    version is not. ``committed``: both are. ``unscored``: a task's evaluation data is gone.
    ``routed``: the router is on disk, with its scores; the task is the last step's."""
    task: str
    """Its name; for the initial step of several tasks their names, joined by ``+``."""
    text: str
    """The same for people, one line."""


Observer: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Observe nothing: the observer where none is given."""


@dataclass(frozen=True)
class Learned:
    """How a task came into the Share model, and what was trained for it."""

    task: str
    how: How
    """``adapter``: merged as it is. ``lora``: as a LoRA of its own, for the first subspace.
    ``data``: in the subspace. ``both``: its adapter was merged, then trained on."""
    labels: tuple[str, ...] = ()
    """Names of the classes, by number."""
    coefficients: int = 0
    """Numbers that were trained, heads left out."""
    temporary: int = 0
    """Numbers of the temporary directions; they are absorbed by the merge."""
    lora: int = 0
    """Numbers of its own LoRA, where ``how`` is ``lora``."""
    heads: int = 0
    """Numbers of heads."""
    own_lora: int = 0
    """What a LoRA of the recipe's rank would train at the same modules, heads left out."""
    steps: int = 0
    """Optimizer steps, those of every training of the task together."""
    loss: float | None = None
    """Mean training loss over all steps; None: nothing was trained."""
    seconds: float = 0.0
    """Time of training, a finetune after the merge included."""
    start: str = "zero"
    """What it started from: ``zero``, ``mean`` or a known task."""

    @property
    def told(self) -> str:
        """One line on the training, for people."""
        loss = "-" if self.loss is None else f"{self.loss:.3f}"
        return f"{self.steps} steps in {self.seconds:.1f} s, mean loss {loss}"

    def trained(self, fit: Fit, counted: Trainable | None = None) -> dict[str, Any]:
        """The fields that a training run fills in; earlier runs of the task are added up."""
        counts = asdict(counted) if counted else {}
        total = self.seconds + fit.seconds
        return {**counts, "steps": self.steps + fit.steps, "loss": fit.loss, "seconds": total}


@dataclass(frozen=True)
class Step:
    """One step of a stream: the version that it commits, and its scores."""

    number: int
    """Number of the step, from 1."""
    learned: tuple[Learned, ...]
    content: str
    """``content_digest`` of the version; the step is done when the store's current version has
    this content."""
    parent: str | None
    """The ``content`` of the step before; None: this is the first."""
    scores: Mapping[str, float | None]
    """Known task with data -> score after the step (higher is better); None: its evaluation data
    was gone."""
    bytes: Mapping[str, int]
    """``basis``, ``coefficients``, ``other``, ``total``, ``adapters``."""
    notices: tuple[str, ...] = ()
    """Why scores are missing."""
    features: Mapping[str, str] = field(default_factory=dict)
    """Task with training data -> name of the file of what a router takes of it; empty where the
    recipe asks for none."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it learned."""
        return tuple(one.task for one in self.learned)

    @property
    def name(self) -> str:
        """The names of its tasks, joined by ``+``."""
        return step_name(self.tasks)

    def to_record(self) -> dict[str, object]:
        """The record as JSON values."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Any, where: str) -> Step:
        """The step that ``to_record`` made a record of.

        Raises:
            CorruptStoreError: a field is missing or unknown.
        """
        try:
            learned = tuple(
                Learned(**{**one, "labels": tuple(one["labels"])}) for one in record["learned"]
            )
            notices = tuple(record["notices"])
            return cls(**{**record, "learned": learned, "notices": notices})
        except (TypeError, KeyError) as error:
            raise CorruptStoreError(
                where, f"no record of a step ({error})", "Bring back the file as it was"
            ) from error


def content_digest(content: Content) -> str:
    """What identifies a version's bases, tasks and heads: sha256 (hex) of their names and files.

    Files are named by their own sums, so two versions of the same content have the same digest, a
    version that a rollback made included.
    """
    parts = [content.basis.file]
    for task in content.tasks:
        kept_file = task.kept.file if task.kept else "-"
        parts += [repr(task.name), task.coefficients.file, kept_file]
    return sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class RoutedTask:
    """Where the router sends a task's evaluation data, in percent of its examples."""

    routing: float
    """Examples that go to the task."""
    fallback: float
    """Examples that go to the base model; they count as wrong below."""
    oracle: float | None
    """Accuracy when the task is given; None: the task is no classification."""
    routed: float | None
    """Accuracy when the router chooses the task; None: the task is no classification."""
    class_incremental: float | None
    """Accuracy among the classes of all tasks: the right task and the right label; None: not all
    tasks of the router are classifications."""


@dataclass(frozen=True)
class RouterResult:
    """A router and how good it is."""

    path: Path
    tasks: tuple[str, ...]
    """Tasks that it knows."""
    bytes: int
    """Size of its file."""
    margin: float | None
    """In nats, see ``Router.margin``; None: no example could be held out."""
    fallback_rate: float
    """Part of the tasks' own inputs, in [0, 1], that the margin was set to give up; measured on
    held-out training examples of all tasks."""
    scores: Mapping[str, RoutedTask]
    """Task -> scores on its evaluation data."""
    notices: tuple[str, ...] = ()
    """Tasks that nothing is sent to, and scores that are missing."""

    @property
    def means(self) -> dict[str, float | None]:
        """Each score's mean over the tasks that have it; None: none has."""
        names = RoutedTask.__dataclass_fields__
        return {name: _mean(getattr(s, name) for s in self.scores.values()) for name in names}

    def to_record(self) -> dict[str, object]:
        """The record as JSON values, without the path."""
        scores = {name: vars(score) for name, score in self.scores.items()}
        rest = {k: v for k, v in vars(self).items() if k not in ("path", "scores")}
        return {**rest, "tasks": list(self.tasks), "notices": list(self.notices), "scores": scores}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], path: Path) -> RouterResult:
        """The result that ``to_record`` made a record of, for a router at ``path``."""
        scores = {name: RoutedTask(**score) for name, score in record["scores"].items()}
        lists = {name: tuple(record[name]) for name in ("tasks", "notices")}
        return cls(**{**record, **lists, "scores": scores, "path": path})


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


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
    """The store's version that the last step committed."""
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
        notices = [text for step in self.steps for text in step.notices]
        return tuple(dict.fromkeys([*notices, *(self.router.notices if self.router else ())]))

    @property
    def measures(self) -> dict[str, float | None]:
        """``acc``, ``bwt`` and ``forgetting`` (see Concepts); None where a score is missing."""
        return {name: _measured(self.matrix, of) for name, of in _MEASURES.items()}


def result_of(
    recipe: Recipe, steps: Sequence[Step], version: int, router: RouterResult | None
) -> StreamResult:
    """The result of a stream whose steps are all committed."""
    columns = tuple(spec for spec in recipe.tasks if spec.data is not None)
    if not columns:
        return StreamResult(recipe.share, version, tuple(steps), None, {}, router)
    matrix = _matrix(tuple(spec.name for spec in columns), steps)
    scores = {spec.name: _task_score(spec, at, matrix) for at, spec in enumerate(columns)}
    return StreamResult(recipe.share, version, tuple(steps), matrix, scores, router)


def _task_score(spec: TaskSpec, column: int, matrix: ScoreMatrix) -> TaskScore:
    """A column's first and last score, in the sign of its metric: a loss is positive again."""
    measured = metric(spec.settings.score)
    sign = 1 if measured.higher_is_better else -1
    first = matrix.scores[matrix.learned[column] or 0][column]
    last = matrix.scores[-1][column]
    return TaskScore(
        measured.name,
        measured.unit,
        measured.higher_is_better,
        None if first is None else sign * first,
        None if last is None else sign * last,
    )


def _matrix(columns: tuple[str, ...], steps: Sequence[Step]) -> ScoreMatrix:
    learned = {t: i for i, step in enumerate(steps) for t in step.tasks}
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
        return None  # A score is missing; the result's notices say why.


def reason(error: Exception) -> str:
    """Why data cannot be read, one line."""
    return "; ".join(getattr(error, "problems", ())) or str(error)


def present(value: T | None, what: str) -> T:
    """The value.

    Args:
        what: the thing, and why it must be there.

    Raises:
        RuntimeError: it is not: a fault in sharespace itself.
    """
    if value is None:
        raise RuntimeError(f"{what}: missing. This is a fault in sharespace; please report it")
    return value
