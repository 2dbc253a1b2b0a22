"""Pictures as SVG in the colours of the page: line charts, heat maps, the map and tree of tasks.

They are small, and readable without colour: lines have dashes, groups have signs, cells have their
values for a script to show.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sharespace.report.html import Html, letters, number, short, tag
from sharespace.report.study import Relations
from sharespace.words import percent, visible

WIDTH, HEIGHT = 470, 280
"""Of a line chart, in the units of its view box."""

LEFT, RIGHT, TOP, BOTTOM = 72, 14, 12, 42
"""Margins of a line chart, for the ticks and the names of the axes."""

STYLES = 8
"""Colours and dashes that the style sheet knows."""

LETTER = 7.0
"""Width of a letter of a label in a wide font, about: nothing measures text before it is drawn."""

NAMED = 9
"""Height of a row from which on its name stands beside it."""

_LONGEST_ROW_NAME = 26
"""Letters of a label beside a heat map."""

_MAP_WIDTH, _MAP_HEIGHT, _MAP_EDGE = 480, 300, 22
"""Of the map of tasks, and the margin that its dots keep."""

_LONGEST_POINT_NAME = 22
"""Letters of a name in the map of tasks."""

_MOST_NAMED_POINTS = 60
"""Dots up to which each has its name where there is room; of more only families have."""

_SIGNS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-4-4h8v8h-8z",
    "M0-5L5 4H-5z",
    "M0-5.5L5 0L0 5.5L-5 0z",
    "M0 5L5-4H-5z",
    "M-5-2h3v-3h4v3h3v4h-3v3h-4v-3h-3z",
    "M-4.5-5v10L5 0z",
    "M4.5-5v10L-5 0z",
)
"""A family of tasks is known by its sign, too."""

_NO_SIGN = "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z"

HeatValue = float | None
"""The value of a cell; None: it is left blank."""


@dataclass(frozen=True)
class Series:
    """One line."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 0
    dashed: bool = False
    """Extrapolated, not measured."""
    marks: bool = False
    """A dot at each point."""


@dataclass(frozen=True)
class Axis:
    """From 0 (or ``low``) to ``high``."""

    label: str
    high: float
    show: Callable[[float], str]
    low: float = 0.0
    whole: bool = False
    """Ticks at whole numbers only."""

    @property
    def ticks(self) -> list[float]:
        """About five round numbers."""
        step = _round_step((self.high - self.low) / 5)
        if self.whole:
            step = max(1.0, step)
        # A tick that the division misses by its rounding still belongs to the axis.
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [step * i for i in range(first, last + 1)]

    def at(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        # An axis without a range, as of one version with no error, has its point at the low end.
        return (value - self.low) / ((self.high - self.low) or 1)


def _round_step(step: float) -> float:
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * 0.999)


def chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, extra: Sequence[Html] = ()
) -> Html:
    """Lines over a light grid.

    Args:
        title: what it shows, for those who cannot see it.
        series: drawn in order.
        x, y: the axes.
        extra: drawn behind the lines, in the chart's coordinates (``place``).
    """
    return tag(
        "svg",
        tag("title", title),
        _grid(x, y),
        extra,
        [_line(one, x, y) for one in series],
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="chart",
    )


def place(x: Axis, y: Axis, point: tuple[float, float]) -> tuple[float, float]:
    """A point in the coordinates of the picture."""
    across = LEFT + x.at(point[0]) * (WIDTH - LEFT - RIGHT)
    return across, HEIGHT - BOTTOM - y.at(point[1]) * (HEIGHT - TOP - BOTTOM)


def _grid(x: Axis, y: Axis) -> list[Html]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    drawn = []
    for value in y.ticks:
        at = place(x, y, (x.low, value))[1]
        drawn.append(tag("line", x1=LEFT, x2=right, y1=at, y2=at, class_="grid"))
        drawn.append(tag("text", y.show(value), x=LEFT - 6, y=at + 4, class_="end"))
    for value in x.ticks:
        at = place(x, y, (value, y.low))[0]
        drawn.append(tag("text", x.show(value), x=at, y=bottom + 16, class_="mid"))
    middle = (LEFT + right) / 2
    drawn.append(tag("text", x.label, x=middle, y=HEIGHT - 6, class_="mid axis"))
    up = (TOP + bottom) / 2
    turned = f"translate(12 {number(up)}) rotate(-90)"
    return [*drawn, tag("text", y.label, transform=turned, class_="mid axis")]


def _line(one: Series, x: Axis, y: Axis) -> list[Html]:
    spots = [place(x, y, point) for point in one.points]
    points = " ".join(f"{number(a)},{number(b)}" for a, b in spots)
    style = f"s{one.style % STYLES}"
    dashed = " dashed" if one.dashed else ""
    drawn = [tag("polyline", points=points, class_=f"line {style}{dashed}")]
    if one.marks:
        drawn += [tag("circle", cx=a, cy=b, r=3, class_=f"dot {style}") for a, b in spots]
    return drawn


def legend(series: Sequence[Series]) -> Html:
    """The names of the lines, as a list that wraps on a narrow screen."""
    return tag("ul", [tag("li", _swatch(one), " ", one.name) for one in series], class_="legend")


def _swatch(one: Series) -> Html:
    dashed = " dashed" if one.dashed else ""
    line = tag("line", x1=0, x2=26, y1=6, y2=6, class_=f"line s{one.style % STYLES}{dashed}")
    return tag("svg", line, width=26, height=12, aria_hidden="true")


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
        # Without names nothing is lost when it shrinks to the width of a phone.
        class_="heat" if named else "heat fit",
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
    drawn, at, written = [], left, -1e9
    for name, columns in heat.groups:
        end = at + columns * width
        drawn.append(tag("path", d=_bracket(at + 1, end - 1, top), class_="bracket"))
        middle = (at + end) / 2
        # Slanted names closer than a line of text would lie on each other.
        if middle - written >= 13:
            spot = f"translate({number(middle)} {number(top - 11)}) rotate(-40)"
            drawn.append(tag("text", _label(name), transform=spot))
            written = middle
        at = end
    return drawn


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


def task_map(names: Sequence[str], relations: Relations) -> Html:
    """Dots with names where they fit; every dot has its name as a tooltip."""
    spots = _spots(relations.points)
    dots = [
        _dot(name, spot, group)
        for name, spot, group in zip(names, spots, relations.families, strict=True)
    ]
    written = list(_labels(_texts(names, spots, relations.families), spots))
    return tag(
        "svg",
        tag("title", f"Map of {len(names)} tasks by the overlaps of their directions."),
        dots,
        written,
        viewBox=f"0 0 {_MAP_WIDTH} {_MAP_HEIGHT}",
        role="img",
        class_="chart map",
    )


def _spots(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """One scale for both axes, so that distances can be compared."""
    wide = [max(p[i] for p in points) - min(p[i] for p in points) for i in (0, 1)]
    room = (_MAP_WIDTH - 2 * _MAP_EDGE, _MAP_HEIGHT - 2 * _MAP_EDGE)
    # Tasks that are equal but for rounding have no width, and must not be blown up to fill the map.
    scales = [r / w for r, w in zip(room, wide, strict=True) if w > 1e-9]
    scale = min(scales, default=1.0)
    middle = [(max(p[i] for p in points) + min(p[i] for p in points)) / 2 for i in (0, 1)]
    return [
        (_MAP_WIDTH / 2 + (x - middle[0]) * scale, _MAP_HEIGHT / 2 - (y - middle[1]) * scale)
        for x, y in points
    ]


def _dot(name: str, spot: tuple[float, float], family: int | None) -> Html:
    at = f"translate({number(spot[0])} {number(spot[1])})"
    outline, style = _sign(family)
    return tag("path", tag("title", name), d=outline, transform=at, class_=style)


def _sign(family: int | None) -> tuple[str, str]:
    """Outline and class of a dot; more families than signs have none."""
    if family is None or family >= len(_SIGNS):
        return _NO_SIGN, "sign none"
    return _SIGNS[family], f"sign s{family}"


def family_sign(family: int | None) -> Html:
    """The sign of a family, for a line of text."""
    outline, style = _sign(family)
    drawn = tag("path", d=outline, transform="translate(7 7)", class_=style)
    return tag("svg", drawn, width=14, height=14, class_="inline", aria_hidden="true")


def family_name(family: int) -> str:
    """A to Z, then A2 and so on."""
    letter, turn = chr(ord("A") + family % 26), family // 26
    return f"Family {letter}{turn + 1 if turn else ''}"


def gauge(value: float, style: str) -> Html:
    """A bar from 0 to 1 that fills its cell of a table, whatever its width."""
    drawn = tag("rect", width=100 * min(max(value, 0.0), 1.0), height=6, class_=style)
    return tag(
        "svg",
        tag("rect", width=100, height=6, class_="rail"),
        drawn,
        viewBox="0 0 100 6",
        preserveAspectRatio="none",
        class_="gauge",
        aria_hidden="true",
    )


def _texts(
    names: Sequence[str],
    spots: Sequence[tuple[float, float]],
    families: Sequence[int | None],
) -> dict[int, str]:
    """Dot -> what is written beside it: its name, or of many dots the family at its middle one."""
    if len(names) <= _MOST_NAMED_POINTS:
        return {i: short(visible(name), _LONGEST_POINT_NAME) for i, name in enumerate(names)}
    texts = {}
    for family in sorted({f for f in families if f is not None and f < len(_SIGNS)}):
        dots = [i for i, number in enumerate(families) if number == family]
        middle = [sum(spots[i][axis] for i in dots) / len(dots) for axis in (0, 1)]
        texts[min(dots, key=lambda i: math.dist(spots[i], middle))] = family_name(family)
    return texts


def _labels(texts: Mapping[int, str], spots: Sequence[tuple[float, float]]) -> Iterator[Html]:
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    for i, text in texts.items():
        x, y = spots[i]
        wide = letters(text) * LETTER + 2
        for left, top, anchor in _sides(x, y, wide):
            box = (left, top, left + wide, top + 11)
            # A name may touch its own dot, but no other dot and no name.
            obstacles = taken[:i] + taken[i + 1 :]
            if len(spots) > _MOST_NAMED_POINTS:
                # The middle of a family has dots all around: only names keep apart there.
                obstacles = taken[len(spots) :]
            if _inside(box) and not any(_meet(box, obstacle) for obstacle in obstacles):
                taken.append(box)
                at = {"start": left + 1, "mid": left + wide / 2, "end": left + wide - 1}[anchor]
                yield tag("text", text, x=at, y=top + 9, class_=f"name {anchor}")
                break


def _sides(x: float, y: float, wide: float) -> Iterator[tuple[float, float, str]]:
    """Left and top edge of a name at the right, left, above and below a dot."""
    yield x + 7, y - 5.5, "start"
    yield x - 7 - wide, y - 5.5, "end"
    yield x - wide / 2, y - 18, "mid"
    yield x - wide / 2, y + 7, "mid"


def _inside(box: tuple[float, float, float, float]) -> bool:
    return box[0] >= 0 and box[1] >= 0 and box[2] <= _MAP_WIDTH and box[3] <= _MAP_HEIGHT


def _meet(one: Sequence[float], two: Sequence[float]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def tree(relations: Relations, width: float, per_row: int = 1) -> Html:
    """The tree with its leaves at the right, a leaf every ``1 / per_row`` downwards.

    Args:
        relations: of at least two tasks.
        width: from an overlap of 1 (at the right) to the smallest.
        per_row: leaves in one row of what stands beside it.
    """
    place = {task: (at + 0.5) / per_row for at, task in enumerate(relations.order)}
    count = len(relations.order)
    # An overlap may be a little above 1 by rounding, and below 0 where chance would give more.
    farthest = max((1 - join.overlap for join in relations.joins), default=0.0)
    farthest = max(farthest, 1e-9)
    spots: dict[int, tuple[float, float]] = {i: (width, y) for i, y in place.items()}
    drawn = []
    for at, join in enumerate(relations.joins):
        across = width * (1 - max(1 - join.overlap, 0.0) / farthest) * 0.98
        one, two = spots[join.first], spots[join.second]
        drawn.append(_fork(across, one, two))
        spots[count + at] = (across, (one[1] + two[1]) / 2)
    return tag("path", d="".join(drawn), class_="tree", vector_effect="non-scaling-stroke")


def _fork(across: float, one: Sequence[float], two: Sequence[float]) -> str:
    """From one branch to the line that joins it with the other."""
    return f"M{number(one[0])} {one[1]:.2f}H{number(across)}V{two[1]:.2f}H{number(two[0])}"
