"""What is kept per task and layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean

from sharespace.page.facts import Facts, LayerFacts, TaskFacts
from sharespace.page.groups import by_kind, labels
from sharespace.page.heat import ERRORS, Cell, Heat, heat_map
from sharespace.page.markup import Html
from sharespace.page.sections.frame import details, figure, read, readout, section
from sharespace.page.sections.tasks import worst_first
from sharespace.page.table import Cell as TableCell
from sharespace.page.table import Figure, scrolling, table
from sharespace.page.words import count, percent

MOST_ROWS = 150
"""Tasks in the map."""
MOST_COLUMNS = 160
"""Columns of the map; with more layers a column is several."""
MOST_LISTED = 400
"""Layers in the table."""


@dataclass(frozen=True)
class Columns:
    """Layers side by side, those of one kind together."""

    modules: tuple[tuple[str, ...], ...]
    """By column; more than one where there are too many layers."""
    groups: tuple[tuple[str, int], ...]
    """(kind, columns)."""

    @property
    def most(self) -> int:
        """Layers in the fullest column."""
        return max(map(len, self.modules), default=1)


def columns(modules: Sequence[str], most: int = MOST_COLUMNS) -> Columns:
    """Put layers of one kind side by side, and several into one column where they are too many."""
    kinds = by_kind(modules)
    each = ceil(len(modules) / most)
    found: list[tuple[str, ...]] = []
    groups = []
    named = labels(list(kinds))
    for kind, members in kinds.items():
        parts = [tuple(members[i : i + each]) for i in range(0, len(members), each)]
        found += parts
        groups.append((named[kind], len(parts)))
    return Columns(tuple(found), tuple(groups))


def layers(facts: Facts) -> Html:
    """A map of the bounds, and a table of the layers."""
    if not facts.tasks or not facts.layers:
        return section("layers", "Layers", read("There is nothing to show without tasks."))
    shown = worst_first(facts)[:MOST_ROWS]
    across = columns([layer.module for layer in facts.layers])
    return section(
        "layers",
        "Tasks × layers",
        read(
            "Bound on the relative error of each task in each layer: faint is kept, strong is "
            "lost, blank is a layer that the task does not adapt. Layers that do the same job "
            "stand side by side, by depth.",
            _limits(facts, len(shown), across),
        ),
        figure(
            ERRORS.legend(),
            scrolling("Map of bounds by task and layer", _map(shown, across)),
            readout(),
        ),
        details(f"The {count(len(facts.layers), 'layer')} as a table", _table(facts)),
    )


def _limits(facts: Facts, shown: int, across: Columns) -> str:
    text = ""
    if shown < len(facts.tasks):
        text += f" The {shown} tasks with the largest bounds of {len(facts.tasks)} are shown."
    if across.most > 1:
        text += f" A column is up to {across.most} neighbouring layers, and shows the worst."
    return text


def _map(shown: Sequence[TaskFacts], across: Columns) -> Html:
    values = [[_worst(task, modules) for modules in across.modules] for task in shown]
    known = [v for row in values for v in row if v is not None]
    summary = f"The median is {percent(sorted(known)[len(known) // 2])}" if known else "Empty"
    title = (
        f"Bounds of {count(len(shown), 'task')} in {count(len(across.modules), 'column')} of "
        f"layers. {summary}, the largest {percent(max(known, default=0.0))}."
    )
    names = [m[0] if len(m) == 1 else f"{m[0]} to {m[-1]}" for m in across.modules]
    heat = Heat(title, [t.name for t in shown], names, values, ERRORS, across.groups)
    return heat_map(heat, (_between(6, 900 / len(names), 30), _between(5, 900 / len(shown), 20)))


def _between(low: float, value: float, high: float) -> float:
    return float(round(min(high, max(low, value))))


def _worst(task: TaskFacts, modules: Sequence[str]) -> Cell:
    known = [task.kept.layers[m].bound for m in modules if m in task.kept.layers]
    return max(known, default=None)


_HEADS = (
    "layer",
    "rows n",
    "columns d",
    "k left",
    "k right",
    "cap",
    "tasks",
    "mean bound",
    "worst bound",
    "worst task",
)


def _table(facts: Facts) -> Html:
    rows = [_row(layer, facts) for layer in facts.layers]
    heads, listed = _HEADS, rows
    if len(rows) > MOST_LISTED:
        listed = sorted(rows, key=_worst_bound)[:MOST_LISTED]
    return table(
        "Layers" if listed is rows else f"The {MOST_LISTED} layers with the largest bounds",
        heads,
        listed,
    )


def _worst_bound(row: Sequence[TableCell]) -> float:
    cell = row[8]
    return -cell.value if isinstance(cell, Figure) else 0.0


def _row(layer: LayerFacts, facts: Facts) -> list[TableCell]:
    bounds = {
        t.name: t.kept.layers[layer.module].bound
        for t in facts.tasks
        if layer.module in t.kept.layers
    }
    worst = max(bounds, key=lambda name: bounds[name], default="–")
    mean = fmean(bounds.values()) if bounds else 0.0
    largest = bounds.get(worst, 0.0)
    cap = layer.cap
    return [
        layer.module,
        Figure(f"{layer.shape.out_features:,}", layer.shape.out_features),
        Figure(f"{layer.shape.in_features:,}", layer.shape.in_features),
        Figure(str(layer.k[0]), layer.k[0]),
        Figure(str(layer.k[1]), layer.k[1]),
        Figure(str(max(cap)) if cap else "none", max(cap) if cap else 0),
        Figure(str(len(bounds)), len(bounds)),
        Figure(percent(mean), mean),
        Figure(percent(largest), largest),
        worst,
    ]
