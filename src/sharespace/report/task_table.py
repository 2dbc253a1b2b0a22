"""What is kept: the table of tasks, and maps and a table of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from sharespace.report.byte_sizes import in_all, storage_map, stored_kinds, tallies
from sharespace.report.facts import Facts, LayerFacts, TaskFacts
from sharespace.report.html import (
    Columns,
    Figure,
    Html,
    Note,
    TableCell,
    columns,
    details,
    dotted,
    figure,
    join,
    read,
    readout,
    scrolling,
    section,
    span,
    table,
    tag,
)
from sharespace.report.study import FAMILY_OVERLAP
from sharespace.report.svg import (
    ERRORS,
    Axis,
    Heat,
    HeatValue,
    Series,
    chart,
    family_name,
    family_sign,
    gauge,
    heat_map,
    legend,
)
from sharespace.subspace.fidelity import LARGE_BOUND, UpdateTally
from sharespace.words import count, human, percent, visible, words_of_start

_HEADS = ("task", "family", "error", "bound", "worst layer", "p")

_MORE = ("bytes", "adapter", "closest relative", "order", "from")

MOST_SHOWN = 20
"""Rows of the table of tasks before all are asked for."""

_MOST_MARKS = 40
"""Tasks up to which each has a dot on the lines of errors."""

MOST_ROWS = 150
"""Tasks in the map."""

MOST_LISTED = 400
"""Layers in the table."""

_LAYER_HEADS = ("layer", "size", "k", "cap", "tasks")
"""Under a budget without the cap, which is k then."""

_STORAGE_HEADS = ("all directions", "leading only", "per task", "not kept")
"""Heads of the columns of updates, by the way in which they are stored."""

_LAYER_MORE = ("bases", "mean bound", "worst bound", "worst task")


def worst_first(facts: Facts) -> list[TaskFacts]:
    """By the bound on the error."""
    return sorted(facts.tasks, key=lambda t: -t.fidelity.bound)


def tasks(facts: Facts) -> Html:
    """All tasks, the one that may have lost most first."""
    relatives = nearest(facts)
    numbers = dict(zip(facts.study.names, facts.relations.families, strict=True))
    per_task = facts.stored.per_task.updates > 0
    ranked = worst_first(facts)
    rows = [_row(t, relatives.get(t.name), numbers.get(t.name), per_task) for t in ranked]
    return section(
        "tasks",
        "Tasks",
        _errors(ranked),
        read(
            "The error is that of the weights, ‖dW − stored‖ / ‖dW‖ over all layers; the bound "
            "holds whatever happened since the task came. ~ marks an estimate. ",
            "Of a task that started from known ones both are relative to what it learned. "
            if any(task.started_from for task in facts.tasks)
            else "",
            "Per task: layers in which its update is stored outside of the subspace."
            if per_task
            else "",
        ),
        table(
            "Tasks and what is kept of each, worst first",
            (*_HEADS, *(["per task"] if per_task else []), *_MORE),
            rows,
            shown=MOST_SHOWN,
        ),
    )


def _errors(ranked: Sequence[TaskFacts]) -> Html | str:
    """Errors and bounds of all tasks as lines, each sorted by itself from the worst on."""
    if len(ranked) < 2:
        return ""
    bounds = [task.fidelity.bound for task in ranked]
    errors = sorted((task.fidelity.relative_error for task in ranked), reverse=True)
    series = [
        Series("bound", list(enumerate(bounds, 1)), style=1, marks=len(ranked) <= _MOST_MARKS),
        Series("error", list(enumerate(errors, 1)), style=0, marks=len(ranked) <= _MOST_MARKS),
    ]
    top = max(bounds) or 1.0
    x = Axis(
        "tasks, the worst of each line first", len(ranked), lambda v: f"{v:,.0f}", low=1, whole=True
    )
    y = Axis("relative error", top * 1.05, percent)
    large = sum(bound >= LARGE_BOUND for bound in bounds)
    text = (
        f"The median bound is {percent(median(bounds))}, the largest {percent(top)}"
        f" ({visible(ranked[0].name)}); {large} of {count(len(ranked), 'task')} may have lost "
        f"{percent(LARGE_BOUND)} or more."
    )
    return figure([legend(series), tag("p", text)], chart(text, series, x, y))


def _row(
    task: TaskFacts, relative: tuple[str, float] | None, family: int | None, with_per_task: bool
) -> list[TableCell]:
    """A task's cells, with that of its updates stored per task where any task has some."""
    fidelity, per_task = task.fidelity, task.stored.per_task.updates
    error, bound = percent(fidelity.relative_error), percent(fidelity.bound)
    alarm = fidelity.bound >= LARGE_BOUND
    bar = gauge(fidelity.bound, "s1" if alarm else "s0")
    return [
        task.name,
        Note("–" if family is None else _family(family), 1e9 if family is None else family),
        Figure(error if fidelity.measured else f"~{error}", fidelity.relative_error),
        Figure(join([bound, bar]), fidelity.bound, alarm=alarm),
        Note(*_worst(task)),
        Figure(span(task.p), task.p[1]),
        *([Figure(f"{per_task} of {len(fidelity.layers)}", per_task)] if with_per_task else []),
        Figure(human(task.bytes), task.bytes),
        Figure(human(task.adapter_bytes), task.adapter_bytes),
        Note(f"{relative[0]} ({relative[1]:.2f})", relative[1]) if relative else "–",
        Figure(str(task.place), task.place),
        Note(_origin(task), hint=_digest(task)),
    ]


def _family(number: int) -> Html:
    return join([family_sign(number), " ", family_name(number).removeprefix("Family ")])


def _worst(task: TaskFacts) -> tuple[str, float]:
    layer, error = task.fidelity.worst_layer, task.fidelity.worst_layer_error
    return join([f"{percent(error)} ", dotted(layer)]) if layer else "–", error


def _origin(task: TaskFacts) -> str:
    """Format and folder; the names of files in it are always the same."""
    folder = task.source.removesuffix("/adapter_model.safetensors")
    start = f"started from {words_of_start(task.started_from)}" if task.started_from else ""
    return ", ".join(part for part in (task.format, folder, start) if part)


def _digest(task: TaskFacts) -> str:
    return f"{task.source}, sha256 of its weights: {task.sha256}" if task.sha256 else task.source


def nearest(facts: Facts) -> dict[str, tuple[str, float]]:
    """Task -> the task with which it overlaps most, and how far; those without relatives are not
    in it."""
    names = facts.study.names
    if len(names) < 2:
        return {}
    overlaps = facts.study.overlaps.nan_to_num(0).clone().fill_diagonal_(0)
    values, at = overlaps.max(1)
    return {
        name: (names[j], value)
        for name, value, j in zip(names, values.tolist(), at.tolist(), strict=True)
        if value >= FAMILY_OVERLAP
    }


def layers(facts: Facts) -> Html:
    """Maps of the bounds and of how updates are stored, and a table of the layers."""
    if not facts.tasks or not facts.layers:
        return section("layers", "Layers", read("There is nothing to show without tasks."))
    shown = worst_first(facts)[:MOST_ROWS]
    across = columns([layer.module for layer in facts.layers])
    cell = (_between(6, 900 / len(across.modules), 56), _between(9, 900 / len(shown), 20))
    return section(
        "layers",
        "Tasks × layers",
        read(
            "Bound on the relative error of each task in each layer: faint is kept, strong is "
            "lost, blank is a layer that the task does not adapt. Layers that do the same job "
            "stand side by side, by depth.",
            _limits(facts, len(shown), across),
        ),
        tag(
            "div",
            figure(
                ERRORS.legend(),
                tag("h3", "Bound on the error"),
                scrolling("Map of bounds by task and layer", _map(shown, across, cell)),
                readout(),
            ),
            storage_map(shown, across, cell) if len(stored_kinds(facts.stored)) > 1 else "",
            class_="pair",
        ),
        in_all(facts),
        _group_subspaces(facts),
        _out_of_core(facts),
        details(f"The {count(len(facts.layers), 'layer')} as a table", _table(facts)),
    )


def _group_subspaces(facts: Facts) -> Html | str:
    """What a k such as ``8 × 8 in 2`` means."""
    several = [layer.subspaces for layer in facts.layers if layer.subspaces > 1]
    if not several:
        return ""
    return read(
        f"In {len(several):,} of {count(len(facts.layers), 'layer')} groups of tasks have a "
        f"subspace each (up to {max(several)}); k is the sum of their directions, and an update "
        "uses those of its group. They were found by what saves bytes in a layer, and are not "
        "the families above."
    )


def _out_of_core(facts: Facts) -> Html | str:
    streamed = sum(layer.streamed for layer in facts.layers)
    if not streamed:
        return ""
    return read(
        f"Adapters came into {streamed:,} of {count(len(facts.layers), 'layer')} out of core, "
        "because they did not fit in the memory given. The bounds count what that cost."
    )


def _limits(facts: Facts, shown: int, across: Columns) -> str:
    text = ""
    if shown < len(facts.tasks):
        text += f" The {shown} tasks with the largest bounds of {len(facts.tasks)} are shown."
    if across.most > 1:
        text += (
            f" A column is up to {across.most} neighbouring layers, and shows the worst bound, or "
            "how most of them are stored."
        )
    return text


def _map(shown: Sequence[TaskFacts], across: Columns, cell: tuple[float, float]) -> Html:
    values = [[_worst_layer(task, modules) for modules in across.modules] for task in shown]
    known = [v for row in values for v in row if v is not None]
    summary = f"The median is {percent(sorted(known)[len(known) // 2])}" if known else "Empty"
    title = (
        f"Bounds of {count(len(shown), 'task')} in {count(len(across.modules), 'column')} of "
        f"layers. {summary}, the largest {percent(max(known, default=0.0))}."
    )
    heat = Heat(title, [t.name for t in shown], across.names, values, ERRORS, across.groups)
    return heat_map(heat, cell)


def _between(low: float, value: float, high: float) -> float:
    return float(round(min(high, max(low, value))))


def _worst_layer(task: TaskFacts, modules: Sequence[str]) -> HeatValue:
    known = [task.fidelity.layers[m].bound for m in modules if m in task.fidelity.layers]
    return max(known, default=None)


def _table(facts: Facts) -> Html:
    """With a column for each way that updates are stored in, where there is more than one."""
    kinds = stored_kinds(facts.stored)
    kinds = kinds if len(kinds) > 1 else []
    capped = facts.settings.budget is None
    first = [head for head in _LAYER_HEADS if capped or head != "cap"]
    heads = (*first, *(_STORAGE_HEADS[kind] for kind in kinds), *_LAYER_MORE)
    listed = facts.layers
    if len(listed) > MOST_LISTED:
        listed = tuple(sorted(listed, key=lambda la: -_worst_of(la, facts)[1])[:MOST_LISTED])
    return table(
        "Layers" if listed is facts.layers else f"The {MOST_LISTED} layers with the largest bounds",
        heads,
        [_layer_row(layer, facts, kinds) for layer in listed],
    )


def _bounds(layer: LayerFacts, facts: Facts) -> dict[str, float]:
    known = ((t.name, t.fidelity.layers.get(layer.module)) for t in facts.tasks)
    return {name: fidelity.bound for name, fidelity in known if fidelity}


def _worst_of(layer: LayerFacts, facts: Facts) -> tuple[str, float]:
    bounds = _bounds(layer, facts)
    worst = max(bounds, key=lambda name: bounds[name], default="–")
    return worst, bounds.get(worst, 0.0)


def _layer_row(layer: LayerFacts, facts: Facts, kinds: Sequence[int]) -> list[TableCell]:
    bounds, (worst, largest) = _bounds(layer, facts), _worst_of(layer, facts)
    mean = fmean(bounds.values()) if bounds else 0.0
    n, d, cap = layer.shape.out_features, layer.shape.in_features, layer.cap
    stored, capped = [tallies(layer.stored)[kind] for kind in kinds], facts.settings.budget is None
    return [
        dotted(layer.module),
        Figure(f"{n} × {d}", n * d),
        Figure(f"{layer.k[0]} × {layer.k[1]}{_in_groups(layer)}", sum(layer.k)),
        *([Figure(str(max(cap)) if cap else "none", max(cap) if cap else 0)] if capped else []),
        Figure(str(len(bounds)), len(bounds)),
        *(Figure(_told(tally), tally.nbytes) for tally in stored),
        Figure(human(layer.basis), layer.basis),
        Figure(percent(mean), mean),
        Figure(percent(largest), largest),
        worst,
    ]


def _in_groups(layer: LayerFacts) -> str:
    return f" in {layer.subspaces}" if layer.subspaces > 1 else ""


def _told(tally: UpdateTally) -> str:
    return f"{tally.updates:,} · {human(tally.nbytes)}" if tally.updates else "–"
