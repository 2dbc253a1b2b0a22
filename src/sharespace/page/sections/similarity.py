"""How alike the tasks are: a matrix in the order of the tree, and a map."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from sharespace.page.facts import Facts
from sharespace.page.families import ALIKE
from sharespace.page.heat import COSINES, NAMED, OVERLAPS, HeatValue, Heat, Scale, heat_map
from sharespace.page.markup import Html, tag
from sharespace.page.scatter import task_map
from sharespace.page.sections.frame import details, figure, read, readout, section
from sharespace.page.table import scrolling
from sharespace.page.tree import tree
from sharespace.page.words import count, some

MOST_ROWS = 160
"""Rows of the matrix; with more tasks a row is several neighbours in the tree."""
_TREE = 60


def similarity(facts: Facts) -> Html:
    """Matrix, tree, map and families."""
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
        _families(facts),
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
    return heat_map(heat, (side, side), tree(facts.relations, _TREE, each), _TREE + 6)


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
    return [[None if v != v else v for v in row] for row in means.tolist()]


def _map(facts: Facts) -> Html:
    relations = facts.relations
    caption = (
        "Each dot is a task; near dots change the weights alike, unrelated ones lie apart. The two "
        f"axes show {relations.shown:.0%} of the tasks' spread"
        + (", so take distances with care. " if relations.shown < 0.5 else ". ")
        + f"Colours and signs are families: a mean cosine of {ALIKE:g} or more. "
        "Names that would overlap are left out."
    )
    return figure(caption, task_map(facts.study.names, relations))


def _families(facts: Facts) -> Html:
    family = facts.relations.family
    numbers = sorted({n for n in family if n is not None})
    if not numbers:
        text = f"No two tasks have a mean cosine of {ALIKE:g}: there are no families."
        return tag("p", text)
    members = {
        n: [name for name, f in zip(facts.study.names, family, strict=True) if f == n]
        for n in numbers
    }
    items = [
        tag("li", tag("b", f"Family {n + 1}"), f" ({len(names)}): ", ", ".join(names))
        for n, names in members.items()
    ]
    alone = sum(f is None for f in family)
    title = "1 family" if len(numbers) == 1 else f"{len(numbers)} families"
    title += f"; {count(alone, 'task')} in none" if alone else " with all tasks"
    return details(title, tag("ul", items))
