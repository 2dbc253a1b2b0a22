"""How good a router is: beside an oracle that is given the task, and among all tasks' classes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeAlias

from sharespace.errors import MismatchError, OptionError, TaskNotFoundError
from sharespace.route.router import RoutedInputs

Label: TypeAlias = Hashable
"""A class as its task calls it, for example ``"very positive"``."""
Predict: TypeAlias = Callable[[str, Sequence[Any]], Sequence[Label]]
"""(task, inputs) -> labels, with that task's coefficients and head."""


@dataclass(frozen=True)
class LabelledInputs:
    """Labelled inputs of one task."""

    inputs: Sequence[Any]
    """Whatever ``predict`` takes: texts, rows, or indices into predictions made before."""
    labels: Sequence[Label]
    """One label for each input."""


def evaluate(
    examples: Mapping[str, LabelledInputs], routings: Mapping[str, RoutedInputs], predict: Predict
) -> RoutingReport:
    """Score a router on labelled examples of every task.

    Args:
        examples: true task -> its examples.
        routings: true task -> where the router sends them.
        predict: called once for each pair of a true task and a task that it is routed to, with
            the inputs of that pair only, and once with each true task on all its inputs.

    Raises:
        OptionError: there are no tasks, a task has no examples, or ``predict`` returns more or
            fewer labels than it was given inputs.
        TaskNotFoundError: a task has no routing.
        MismatchError: a task has more or fewer labels or routings than inputs.
    """
    if not examples:
        raise OptionError("examples", "there is no task", "Give labelled inputs of each task")
    for task, labelled in examples.items():
        _check(task, labelled, routings)
    scores = {t: _score(t, e, routings[t], predict) for t, e in examples.items()}
    return RoutingReport(scores, {t: _counts(routings[t]) for t in examples})


def _check(task: str, examples: LabelledInputs, routings: Mapping[str, RoutedInputs]) -> None:
    if task not in routings:
        raise TaskNotFoundError(f"task {task!r}", "has no routing", "Route its inputs too")
    if not len(examples.inputs):
        raise OptionError(f"task {task!r}", "no examples", "Leave it out, or give some")
    sizes = (len(examples.inputs), len(examples.labels), len(routings[task].tasks))
    if len(set(sizes)) > 1:
        why = "{} inputs, {} labels and {} routings".format(*sizes)
        raise MismatchError(f"task {task!r}", why, "Give one of each for every example")


def _score(
    task: str, examples: LabelledInputs, routing: RoutedInputs, predict: Predict
) -> TaskScores:
    with_own_head = _predicted(predict, task, examples.inputs)
    routed = _routed_labels(examples, routing, predict)
    own = [r == task for r in routing.tasks]
    right = [
        prediction is not None and prediction[0] == label
        for prediction, label in zip(routed, examples.labels, strict=True)
    ]
    return TaskScores(
        routing=fmean(own),
        fallback=routing.fallback_rate,
        oracle=fmean(p == y for p, y in zip(with_own_head, examples.labels, strict=True)),
        routed=fmean(right),
        class_incremental=fmean(a and b for a, b in zip(own, right, strict=True)),
    )


def _routed_labels(
    examples: LabelledInputs, routing: RoutedInputs, predict: Predict
) -> list[tuple[Label] | None]:
    """(predicted label,) of each input; None where the base model answers."""
    # In a tuple of one, because None may itself be a label.
    predictions: list[tuple[Label] | None] = [None] * len(routing.tasks)
    for task in dict.fromkeys(t for t in routing.tasks if t is not None):
        rows = [i for i, t in enumerate(routing.tasks) if t == task]
        labels = _predicted(predict, task, [examples.inputs[i] for i in rows])
        for i, label in zip(rows, labels, strict=True):
            predictions[i] = (label,)
    return predictions


def _predicted(predict: Predict, task: str, inputs: Sequence[Any]) -> Sequence[Label]:
    labels = predict(task, inputs)
    if len(labels) != len(inputs):
        why = f"{len(labels)} labels for {len(inputs)} inputs of task {task!r}"
        raise OptionError("predict", why, "Return one label for each input")
    return labels


def _counts(routing: RoutedInputs) -> dict[str | None, int]:
    names: list[str | None] = [*routing.candidates, None]
    return {name: routing.tasks.count(name) for name in names}


@dataclass(frozen=True)
class TaskScores:
    """How often one task's examples are treated right, as fractions in [0, 1]."""

    routing: float
    """Fraction that the router sends to the task."""
    fallback: float
    """Fraction that it sends to the base model. That has no head for the task, so these examples
    count as wrong in ``routed`` and ``class_incremental``."""
    oracle: float
    """Fraction that get the right label when the task is given (task-incremental accuracy)."""
    routed: float
    """Fraction that get the right label when the router chooses the task. Tasks may share labels:
    a review that goes to the wrong shop's stars can still get the right number of them."""
    class_incremental: float
    """Fraction that get the right class among all tasks' classes: the right task and label."""


@dataclass(frozen=True)
class RoutingReport:
    """Scores by task; the properties are means over the tasks, which all weigh the same."""

    per_task: Mapping[str, TaskScores]
    confusion: Mapping[str, Mapping[str | None, int]]
    """True task -> task it was routed to (None: the base model) -> number of examples."""

    def _mean(self, score: str) -> float:
        return fmean(getattr(s, score) for s in self.per_task.values())

    @property
    def routing(self) -> float:
        """Routing accuracy."""
        return self._mean("routing")

    @property
    def fallback(self) -> float:
        """Rate of falling back on inputs that do belong to a task."""
        return self._mean("fallback")

    @property
    def oracle(self) -> float:
        """End-task accuracy with the task given."""
        return self._mean("oracle")

    @property
    def routed(self) -> float:
        """End-task accuracy with the router."""
        return self._mean("routed")

    @property
    def class_incremental(self) -> float:
        """Accuracy among the classes of all tasks."""
        return self._mean("class_incremental")
