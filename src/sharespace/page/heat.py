"""Heat maps as SVG: one path a colour, so that ten thousand cells stay small."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sharespace.page.markup import Html, number, tag, visible
from sharespace.page.words import letters, percent, short

HeatValue = float | None
LETTER = 7.0
"""Width of a letter of a label in a wide font, about."""
NAMED = 9
"""Height of a row from which on its name stands beside it."""
_LONGEST_ROW_NAME = 26
"""Letters of a label beside the map."""


@dataclass(frozen=True)
class Scale:
    """Numbers -> colours, in steps that a legend can name."""

    edges: tuple[float, ...]
    """Ascending; step i has the values from edge i - 1 to edge i."""
    prefix: str
    """Of the style sheet's classes: ``"h"`` (little to much), ``"d"`` (against to alike)."""
    show: Callable[[float], str]
    """An edge, in the legend."""
    tell: Callable[[float], str]
    """A value, without spaces."""

    def step(self, value: float) -> int:
        """Number of the step."""
        return bisect_right(self.edges, value)

    def legend(self) -> Html:
        """Each step's colour and where it begins and ends."""
        names = [f"below {self.show(self.edges[0])}"]
        names += [f"to {self.show(edge)}" for edge in self.edges[1:]]
        names.append(f"{self.show(self.edges[-1])} and more")
        items = [
            tag("li", tag("span", class_=f"cell {self.prefix}{i}"), " ", name)
            for i, name in enumerate(names)
        ]
        return tag("ul", items, class_="legend")


def _plain(value: float) -> str:
    return f"{value:.2f}"


ERRORS = Scale(
    (0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.9),
    "h",
    percent,
    lambda error: percent(error).replace(" ", ""),
)
COSINES = Scale((-0.5, -0.2, -0.1, -0.05, 0.05, 0.2, 0.5, 0.8), "d", lambda c: f"{c:g}", _plain)
OVERLAPS = Scale((0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9), "h", lambda c: f"{c:g}", _plain)


@dataclass(frozen=True)
class Heat:
    """A matrix to draw."""

    title: str
    """What it shows, for those who cannot see it."""
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[HeatValue]]
    """None: left blank."""
    scale: Scale
    groups: Sequence[tuple[str, int]] = ()
    """Columns that belong together, (name, how many), written above."""


def heat_map(
    heat: Heat, cell: tuple[float, float], beside: Html | None = None, gap: float = 0
) -> Html:
    """The matrix with the rows' names at the left where they fit.

    Args:
        heat: the matrix.
        cell: width and height of a cell.
        beside: drawn at the left of the names, ``gap`` wide, its rows 1 high.
    """
    width, height = cell
    named = height >= NAMED
    longest = max((letters(_label(r)) for r in heat.rows), default=0) if named else 0
    left = gap + longest * LETTER + 6
    top = _head(heat)
    across, down = width * len(heat.columns), height * len(heat.rows)
    # Room for the last slanted name above the map.
    total = left + across + (top * 0.8 if heat.groups else 2)
    scaled = f"translate({number(left)} {number(top)}) scale({width:g} {height:g})"
    at = f"translate(0 {number(top)}) scale(1 {height:g})"
    return tag(
        "svg",
        tag("title", heat.title),
        _groups(heat, left, top, width),
        tag("g", beside, transform=at) if beside else "",
        _names(heat, left, top, height) if named else "",
        tag("g", _paths(heat), transform=scaled, shape_rendering="crispEdges"),
        width=total,
        height=top + down + 2,
        viewBox=f"0 0 {number(total)} {number(top + down + 2)}",
        role="img",
        class_="heat",
        data_box=" ".join(map(number, (left, top, across, down))),
        data_rows=json.dumps([visible(r) for r in heat.rows]),
        data_columns=json.dumps([visible(c) for c in heat.columns]),
        data_values=" ".join(
            "-" if v is None else heat.scale.tell(v) for row in heat.values for v in row
        ),
    )


def _label(name: str) -> str:
    return short(visible(name), _LONGEST_ROW_NAME)


def _head(heat: Heat) -> float:
    """Height of the slanted names above the map."""
    if not heat.groups:
        return 2
    longest = max(letters(_label(name)) for name, _ in heat.groups)
    return longest * LETTER * 0.65 + 22


def _groups(heat: Heat, left: float, top: float, width: float) -> list[Html]:
    found, at, written = [], left, -1e9
    for name, columns in heat.groups:
        end = at + columns * width
        found.append(tag("path", d=_bracket(at + 1, end - 1, top), class_="bracket"))
        middle = (at + end) / 2
        if middle - written >= 13:
            spot = f"translate({number(middle)} {number(top - 11)}) rotate(-40)"
            found.append(tag("text", _label(name), transform=spot))
            written = middle
        at = end
    return found


def _bracket(start: float, end: float, top: float) -> str:
    return f"M{number(start)} {number(top - 3)}v-4H{number(max(end, start))}v4"


def _names(heat: Heat, left: float, top: float, height: float) -> list[Html]:
    size = "small" if height < 12 else None
    return [
        tag(
            "text",
            _label(name),
            x=left - 5,
            y=top + (i + 0.5) * height + 3.5,
            class_=f"end {size}" if size else "end",
        )
        for i, name in enumerate(heat.rows)
    ]


def _paths(heat: Heat) -> list[Html]:
    """Neighbours of one colour in a row are one rectangle."""
    drawn: dict[int, list[str]] = {}
    for y, row in enumerate(heat.values):
        steps = [None if v is None else heat.scale.step(v) for v in row]
        start = 0
        for x in range(1, len(steps) + 1):
            if x < len(steps) and steps[x] == steps[start]:
                continue
            step = steps[start]
            if step is not None:
                drawn.setdefault(step, []).append(f"M{start} {y}h{x - start}v1h-{x - start}z")
            start = x
    return [
        tag("path", d="".join(parts), class_=f"{heat.scale.prefix}{step}")
        for step, parts in sorted(drawn.items())
    ]
