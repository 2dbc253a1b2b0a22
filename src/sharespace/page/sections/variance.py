"""How many directions the tasks need: explained variance against k, by kind of layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from sharespace.page.chart import STYLES, Axis, Series, chart, legend
from sharespace.page.facts import Facts
from sharespace.page.groups import by_kind, labels
from sharespace.page.markup import Html
from sharespace.page.sections.frame import figure, read, section
from sharespace.page.table import TableCell, Figure, table
from sharespace.page.words import percent

_MOST_LINES = STYLES
_PARTS = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Group:
    """Layers of one kind."""

    name: str
    layers: int
    curve: tuple[float, ...]
    """Mean over the layers, for k = 1, 2, ...; a layer with fewer directions keeps its last."""

    def reaches(self, part: float) -> int | None:
        """Smallest k that explains so much; None: the subspace does not."""
        return next((k for k, kept in enumerate(self.curve, 1) if kept >= part), None)


def groups(explained: Mapping[str, Sequence[float]]) -> list[Group]:
    """The kinds of layers, those with most layers first."""
    kinds = by_kind(explained)
    named = labels(list(kinds))
    found = []
    for kind, modules in kinds.items():
        curves = [explained[m] for m in modules]
        longest = max(map(len, curves))
        mean = (fmean(c[min(k, len(c) - 1)] for c in curves) for k in range(longest))
        found.append(Group(named[kind], len(modules), tuple(mean)))
    return sorted(found, key=lambda g: -g.layers)


def variance(facts: Facts) -> Html:
    """Curves and what they reach."""
    found = groups(facts.study.explained)
    if not found:
        text = "No task is stored in a subspace (each update is private, or zero)."
        return section("variance", "Explained variance", read(text))
    drawn = found[:_MOST_LINES]
    series = [
        Series(g.name, [(0, 0), *((k, v) for k, v in enumerate(g.curve, 1))], style=i)
        for i, g in enumerate(drawn)
    ]
    outside = facts.stored.private.updates + facts.stored.nothing.updates
    left = " Updates outside of the subspaces are not counted." if outside else ""
    more = f" The {_MOST_LINES} kinds with most layers are drawn." if found != drawn else ""
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
            left,
            more,
        ),
        figure(legend(series), chart(title, series, x, y), style="varied"),
        table("Directions that each kind of layer needs", _HEADS, [_row(g) for g in found]),
    )


_HEADS = ("kind of layer", "layers", *(f"k for {part:.0%}" for part in _PARTS), "kept")


def _row(group: Group) -> list[TableCell]:
    needed = [group.reaches(part) for part in _PARTS]
    cells = [Figure("more" if k is None else str(k), 1e9 if k is None else k) for k in needed]
    kept = group.curve[-1]
    return [
        group.name,
        Figure(str(group.layers), group.layers),
        *cells,
        Figure(percent(kept), kept),
    ]
