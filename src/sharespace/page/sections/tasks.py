"""The table of tasks."""

from __future__ import annotations

from sharespace.page.facts import Facts, TaskFacts
from sharespace.page.markup import Html, dotted, join
from sharespace.page.sections.frame import read, section
from sharespace.page.table import TableCell, Figure, Note, table
from sharespace.page.warnings import LARGE
from sharespace.page.words import human, percent, span

_HEADS = ("task", "came as", "error", "bound", "worst layer", "p")
_MORE = ("bytes", "adapter", "most like", "from")


def worst_first(facts: Facts) -> list[TaskFacts]:
    """By the bound on the error."""
    return sorted(facts.tasks, key=lambda t: -t.kept.bound)


def tasks(facts: Facts) -> Html:
    """All tasks, the one that may have lost most first."""
    like = nearest(facts)
    alone = facts.stored.private.updates > 0
    rows = [_row(task, like.get(task.name), alone) for task in worst_first(facts)]
    return section(
        "tasks",
        "Tasks",
        read(
            "What is kept of each task, worst first. ",
            "The error is that of the weights, ‖dW − stored‖ / ‖dW‖ over all layers; the bound "
            "holds whatever happened since the task came. ~ marks an estimate. ",
            "Private: layers in which its update is stored outside of the subspace."
            if alone
            else "",
        ),
        table(
            "Tasks and what is kept of each",
            (*_HEADS, *(["private"] if alone else []), *_MORE),
            rows,
        ),
    )


def _row(task: TaskFacts, like: tuple[str, float] | None, alone: bool) -> list[TableCell]:
    """A task's cells; ``alone``: with that of its private updates."""
    kept, private = task.kept, task.stored.private.updates
    error = percent(kept.relative_error)
    return [
        task.name,
        Figure(f"no. {task.place}", task.place),
        Figure(error if kept.measured else f"~{error}", kept.relative_error),
        Figure(percent(kept.bound), kept.bound, alarm=kept.bound >= LARGE),
        Note(*_worst(task)),
        Figure(span(task.p), task.p[1]),
        *([Figure(f"{private} of {len(kept.layers)}", private)] if alone else []),
        Figure(human(task.bytes), task.bytes),
        Figure(human(task.adapter_bytes), task.adapter_bytes),
        Note(f"{like[0]} ({like[1]:.2f})", like[1]) if like else "–",
        Note(_origin(task), more=_digest(task)),
    ]


def _worst(task: TaskFacts) -> tuple[str, float]:
    layer, error = task.kept.worst_layer, task.kept.worst_layer_error
    return join([f"{percent(error)} ", dotted(layer)]) if layer else "–", error


def _origin(task: TaskFacts) -> str:
    """Format and folder; the names of files in it are always the same."""
    folder = task.source.removesuffix("/adapter_model.safetensors")
    return ", ".join(part for part in (task.format, folder) if part)


def _digest(task: TaskFacts) -> str:
    return f"{task.source}, sha256 of its weights: {task.sha256}" if task.sha256 else task.source


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
