"""How alike the tasks are (matrices in the order of a tree, and a map), and how many directions
they need (explained variance against k, by kind of layer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean

import torch
from torch import Tensor

from sharespace.report.facts import Facts
from sharespace.report.html import (
    Figure,
    Html,
    TableCell,
    details,
    figure,
    read,
    readout,
    scrolling,
    section,
    some,
    table,
    tag,
)
from sharespace.report.study import ALIKE, by_kind, labels
from sharespace.report.svg import (
    COSINES,
    NAMED,
    OVERLAPS,
    STYLES,
    Axis,
    Heat,
    HeatValue,
    Scale,
    Series,
    chart,
    heat_map,
    legend,
    task_map,
    tree,
)
from sharespace.words import count, percent

MOST_ROWS = 160
"""Rows of the matrix; with more tasks a row is several neighbours in the tree."""

_TREE_WIDTH = 60
"""Pixels of the tree beside a matrix."""

_MOST_LINES = STYLES
"""Kinds of layers that are drawn: one for each style of a line."""

_FRACTIONS = (0.5, 0.9, 0.99)

_COLUMN_NAMES = ("kind of layer", "layers", *(f"k for {part:.0%}" for part in _FRACTIONS), "kept")


def similarity(facts: Facts) -> Html:
    """The section on similarity: matrices, tree, map and groups."""
    names = facts.study.names
    if len(names) < 2:
        return section("similarity", "Similarity", read("It takes two tasks to compare."))
    return section(
        "similarity",
        "Similarity of tasks",
        read(
            "Means over the layers that two tasks both adapt, each layer counting alike. Rows and "
            "columns are in the order of the tree at the left: the further to the right two "
            "branches meet, the more alike they are.",
            _limits(facts),
        ),
        tag("div", _cosines(facts), _overlaps(facts), class_="pair"),
        _map(facts),
        _groups(facts),
    )


def _cosines(facts: Facts) -> Html:
    text = (
        "Cosine of the updates: do two tasks change the weights alike? 1 is the same change, 0 is "
        "unrelated, below 0 they work against each other."
    )
    return figure(
        [COSINES.legend(), tag("p", text)],
        tag("h3", "The same change"),
        scrolling("Matrix of cosines", _matrix(facts, facts.study.cosines, COSINES)),
        readout(),
    )


def _overlaps(facts: Facts) -> Html:
    text = (
        "Overlap of the directions: do two tasks use the same ones, whatever they do with them? "
        "This is what a common subspace lives on. 1 is the same directions, 0 is none in common; "
        "tasks with a high overlap and a cosine near 0 share the subspace and differ in it."
    )
    return figure(
        [OVERLAPS.legend(), tag("p", text)],
        tag("h3", "The same directions"),
        scrolling("Matrix of overlaps", _matrix(facts, facts.study.overlaps, OVERLAPS)),
        readout(),
    )


def _limits(facts: Facts) -> str:
    text = ""
    if facts.left_out:
        compared = len(facts.study.names)
        text += f" {compared} evenly spaced tasks of {len(facts.tasks)} are compared."
    each = _each(facts)
    if each > 1:
        text += f" A cell is the mean of {each} × {each} neighbouring tasks."
    return text


def _each(facts: Facts) -> int:
    return ceil(len(facts.study.names) / MOST_ROWS)


def _matrix(facts: Facts, values: Tensor, scale: Scale) -> Html:
    order, each = list(facts.relations.order), _each(facts)
    names = [facts.study.names[i] for i in order]
    rows = [some(names[i : i + each], 2) for i in range(0, len(names), each)]
    title = f"Each of {count(len(names), 'task')} with each, relatives side by side."
    side = float(_side(len(rows)))
    heat = Heat(title, rows, rows, blocks(values[order][:, order], each), scale)
    return heat_map(heat, (side, side), tree(facts.relations, _TREE_WIDTH, each), _TREE_WIDTH + 6)


def _side(rows: int) -> int:
    """Of a cell: so large that names fit beside the rows, or so small that two matrices fit side
    by side."""
    named = min(26, 620 // rows)
    return named if named >= NAMED else max(3, 480 // rows)


def blocks(values: Tensor, each: int) -> list[list[HeatValue]]:
    """Means of each x each cells; None where none is known."""
    count = len(values)
    belongs = torch.zeros(ceil(count / each), count, dtype=torch.float64)
    belongs[torch.arange(count) // each, torch.arange(count)] = 1
    known = (~values.isnan()).double()
    totals = belongs @ values.nan_to_num(0) @ belongs.mT
    means = totals / (belongs @ known @ belongs.mT)
    # Only NaN differs from itself.
    return [[None if v != v else v for v in row] for row in means.tolist()]


def _map(facts: Facts) -> Html:
    relations = facts.relations
    caption = (
        "Each dot is a task; near dots change the weights alike, unrelated ones lie apart. The two "
        f"axes show {relations.shown:.0%} of the tasks' spread"
        + (", so take distances with care. " if relations.shown < 0.5 else ". ")
        + f"Colours and signs are groups: a mean cosine of {ALIKE:g} or more. "
        "Names that would overlap are left out."
    )
    return figure(caption, task_map(facts.study.names, relations))


def _groups(facts: Facts) -> Html:
    groups = facts.relations.groups
    numbers = sorted({n for n in groups if n is not None})
    if not numbers:
        text = f"No two tasks have a mean cosine of {ALIKE:g}: there are no groups."
        return tag("p", text)
    members = {
        n: [name for name, g in zip(facts.study.names, groups, strict=True) if g == n]
        for n in numbers
    }
    items = [
        tag("li", tag("b", f"Group {n + 1}"), f" ({len(names)}): ", ", ".join(names))
        for n, names in members.items()
    ]
    alone = sum(group is None for group in groups)
    title = count(len(numbers), "group")
    title += f"; {count(alone, 'task')} in none" if alone else " with all tasks"
    return details(title, tag("ul", items))


@dataclass(frozen=True)
class LayerKind:
    """The layers of one kind, and what k directions explain in them."""

    name: str
    layers: int
    curve: tuple[float, ...]
    """Mean over the layers, for k = 1, 2, ...; a layer with fewer directions keeps its last."""

    def reaches(self, part: float) -> int | None:
        """Smallest k that explains so much; None: the subspace does not."""
        return next((k for k, explained in enumerate(self.curve, 1) if explained >= part), None)


def layer_kinds(explained: Mapping[str, Sequence[float]]) -> list[LayerKind]:
    """The kinds of layers, those with most layers first."""
    kinds = by_kind(explained)
    named = labels(list(kinds))
    curves_by_kind = []
    for kind, modules in kinds.items():
        curves = [explained[m] for m in modules]
        longest = max(map(len, curves))
        mean = (fmean(c[min(k, len(c) - 1)] for c in curves) for k in range(longest))
        curves_by_kind.append(LayerKind(named[kind], len(modules), tuple(mean)))
    return sorted(curves_by_kind, key=lambda g: -g.layers)


def variance(facts: Facts) -> Html:
    """Curves and what they reach."""
    kinds = layer_kinds(facts.study.explained)
    if not kinds:
        text = "No task is stored in a subspace (each update is stored per task, or zero)."
        return section("variance", "Explained variance", read(text))
    drawn = kinds[:_MOST_LINES]
    series = [
        Series(g.name, [(0, 0), *((k, v) for k, v in enumerate(g.curve, 1))], style=i)
        for i, g in enumerate(drawn)
    ]
    outside = facts.stored.per_task.updates + facts.stored.nothing.updates
    uncounted = " Updates outside of the subspaces are not counted." if outside else ""
    limit = f" The {_MOST_LINES} kinds with most layers are drawn." if kinds != drawn else ""
    highest = max(len(g.curve) for g in drawn)
    x = Axis("directions a side, k", highest, lambda v: f"{v:g}", whole=True)
    y = Axis("explained variance", 1.0, lambda v: f"{v:.0%}")
    title = "Explained variance against k for each kind of layer; the table has the figures."
    return section(
        "variance",
        "Explained variance",
        read(
            "Part of the tasks' energy that the best k directions a side explain, each task "
            "counting alike; mean over the layers of a kind. A line that rises early means that "
            "the tasks share directions. It ends at the k that is stored; what is missing to "
            "100 % there was lost at the build or at merges.",
            uncounted,
            limit,
        ),
        figure(legend(series), chart(title, series, x, y), style="varied"),
        table(
            "Directions that each kind of layer needs",
            _COLUMN_NAMES,
            [_row(kind) for kind in kinds],
        ),
    )


def _row(kind: LayerKind) -> list[TableCell]:
    needed = [kind.reaches(part) for part in _FRACTIONS]
    cells = [Figure("more" if k is None else str(k), 1e9 if k is None else k) for k in needed]
    highest = kind.curve[-1]
    return [
        kind.name,
        Figure(str(kind.layers), kind.layers),
        *cells,
        Figure(percent(highest), highest),
    ]
