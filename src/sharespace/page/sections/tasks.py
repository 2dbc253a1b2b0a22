"""The table of tasks."""

from __future__ import annotations

from sharespace.page.facts import Facts, TaskFacts
from sharespace.page.markup import Html
from sharespace.page.sections.frame import read, section
from sharespace.page.table import Cell, Figure, Note, table
from sharespace.page.warnings import LARGE
from sharespace.page.words import human, percent, span

_HEADS = (
    "task",
    "came as",
    "error",
    "bound",
    "worst layer",
    "p",
    "bytes",
    "adapter",
    "most like",
    "from",
)


def worst_first(facts: Facts) -> list[TaskFacts]:
    """By the bound on the error."""
    return sorted(facts.tasks, key=lambda t: -t.kept.bound)


def tasks(facts: Facts) -> Html:
    """All tasks, the one that may have lost most first."""
    like = nearest(facts)
    rows = [_row(task, like.get(task.name)) for task in worst_first(facts)]
    return section(
        "tasks",
        "Tasks",
        read(
            "What is kept of each task, worst first. ",
            "The error is that of the weights, ‖dW − stored‖ / ‖dW‖ over all layers; the bound "
            "holds whatever happened since the task came. ~ marks an estimate.",
        ),
        table("Tasks and what is kept of each", _HEADS, rows),
    )


def _row(task: TaskFacts, like: tuple[str, float] | None) -> list[Cell]:
    kept = task.kept
    error = percent(kept.relative_error)
    return [
        task.name,
        Figure(f"no. {task.place}", task.place),
        Figure(error if kept.measured else f"~{error}", kept.relative_error),
        Figure(percent(kept.bound), kept.bound, alarm=kept.bound >= LARGE),
        Note(_worst(task), kept.worst_layer_error),
        Figure(span(task.p) + (" (private)" if task.private else ""), task.p[1]),
        Figure(human(task.bytes), task.bytes),
        Figure(human(task.adapter_bytes), task.adapter_bytes),
        Note(f"{like[0]} ({like[1]:.2f})", like[1]) if like else "–",
        Note(", ".join(p for p in (task.format, task.source) if p), more=_digest(task)),
    ]


def _worst(task: TaskFacts) -> str:
    layer = task.kept.worst_layer
    return f"{percent(task.kept.worst_layer_error)} {layer}" if layer else "–"


def _digest(task: TaskFacts) -> str:
    return f"sha256 of its weights: {task.sha256}" if task.sha256 else ""


def nearest(facts: Facts) -> dict[str, tuple[str, float]]:
    """Task -> the task that is most like it, and their cosine."""
    names = facts.study.names
    if len(names) < 2:
        return {}
    cosines = facts.study.cosines.nan_to_num(-2).clone()
    cosines.fill_diagonal_(-3)
    values, at = cosines.max(1)
    return {
        name: (names[j], value)
        for name, value, j in zip(names, values.tolist(), at.tolist(), strict=True)
        if value >= -1
    }
