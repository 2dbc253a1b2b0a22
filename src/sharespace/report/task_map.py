"""Which tasks are relatives (a map, families, matrices in the order of a tree), and how many
directions they need (explained variance against k, by kind of layer).
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
    join,
    read,
    readout,
    scrolling,
    section,
    some,
    table,
    tag,
)
from sharespace.report.study import by_kind, labels
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
    family_name,
    family_sign,
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

UNRELATED_COSINE = 0.05
"""Cosine of two updates up to which there is nothing to draw; the palest step of the matrix."""

_MOST_FAMILIES, _MOST_NAMES = 12, 8

_MOST_LINES = STYLES
"""Kinds of layers that are drawn: one for each style of a line."""

_FRACTIONS = (0.5, 0.9, 0.99)

_COLUMN_NAMES = ("kind of layer", "layers", *(f"k for {part:.0%}" for part in _FRACTIONS), "kept")


def families(facts: Facts) -> Html:
    """The section on relatives: a map, the families, matrices in the order of a tree."""
    names = facts.study.names
    if len(names) < 2:
        return section("families", "Families", read("It takes two tasks to compare."))
    return section(
        "families",
        "Families of tasks",
        _map(facts),
        _members(facts),
        read(
            "Tasks are relatives where their updates use the same directions, whatever they do "
            "with them: a common subspace lives on that. Overlaps are means over the layers that "
            "two tasks both adapt: 1 is the same directions, 0 is no more than updates of random "
            "directions have. A family is a branch of the tree in which tasks overlap much more "
            "with each other than with all others.",
            _limits(facts),
        ),
        tag("div", _overlaps(facts), _cosines(facts), class_="pair"),
    )


def _overlaps(facts: Facts) -> Html:
    text = (
        "Rows and columns are in the order of the tree at the left: the further to the right two "
        "branches meet, the more they overlap."
    )
    return figure(
        [OVERLAPS.legend(), tag("p", text)],
        tag("h3", "The same directions"),
        scrolling("Matrix of overlaps", _matrix(facts, facts.study.overlaps, OVERLAPS)),
        readout(),
    )


def _cosines(facts: Facts) -> Html:
    apart = facts.study.cosines.nan_to_num(0).clone().fill_diagonal_(0).abs()
    largest = float(apart.max())
    if largest < UNRELATED_COSINE:
        # A matrix of rounding and chance would only look as if it said something.
        text = (
            f"No two tasks change the weights alike: the cosine of no two updates is beyond "
            f"±{largest:.2f}."
        )
        return figure("", read(text))
    text = (
        "Cosine of the updates: do two tasks change the weights alike? 1 is the same change, 0 is "
        "unrelated, below 0 they work against each other. Tasks with a high overlap and a cosine "
        "near 0 share directions and do different things with them."
    )
    return figure(
        [COSINES.legend(), tag("p", text)],
        tag("h3", "The same change"),
        scrolling("Matrix of cosines", _matrix(facts, facts.study.cosines, COSINES)),
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
        "Each dot is a task; near dots use the same directions, unrelated ones lie apart. The two "
        f"axes show {relations.shown:.0%} of the tasks' spread"
        + (", so take distances with care. " if relations.shown < 0.5 else ". ")
        + "Colours and signs are families, grey dots are tasks of none."
    )
    return figure(caption, task_map(facts.study.names, relations))


def _members(facts: Facts) -> Html:
    """The families with their signs, names and how much their tasks overlap."""
    numbers = facts.relations.families
    members = [
        [i for i, number in enumerate(numbers) if number == family]
        for family in range(1 + max((n for n in numbers if n is not None), default=-1))
    ]
    if not members:
        return read(
            "There are no families: no tasks use the same directions to an extent that stands out."
        )
    items = [
        tag(
            "li",
            family_sign(number),
            " ",
            tag("b", family_name(number)),
            f": {count(len(tasks), 'task')}, mean overlap {_inside(facts, tasks):.2f}",
            _names(facts, tasks),
        )
        for number, tasks in enumerate(members[:_MOST_FAMILIES])
    ]
    further = len(members) - len(items)
    alone = numbers.count(None)
    texts = []
    if further:
        texts.append(f"{count(further, 'smaller family').replace('familys', 'families')} more.")
    if alone:
        texts.append(f"{count(alone, 'task')} in no family.")
    return join([tag("ul", items, class_="families"), read(" ".join(texts)) if texts else ""])


def _names(facts: Facts, tasks: Sequence[int]) -> Html:
    names = [facts.study.names[i] for i in tasks]
    if len(names) <= _MOST_NAMES:
        return tag("p", some(names, _MOST_NAMES))
    return details(some(names, 4), tag("p", ", ".join(names)))


def _inside(facts: Facts, tasks: Sequence[int]) -> float:
    """Mean overlap of the pairs of a family."""
    block = facts.study.overlaps[list(tasks)][:, list(tasks)].nan_to_num(0)
    pairs = len(tasks) * (len(tasks) - 1)
    return float(block.sum() - block.diagonal().sum()) / pairs


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
