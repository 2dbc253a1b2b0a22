"""Line charts as SVG: small, in the colours of the page, readable without colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sharespace.page.markup import Html, number, tag

WIDTH, HEIGHT = 470, 280
LEFT, RIGHT, TOP, BOTTOM = 72, 14, 12, 42
STYLES = 8
"""Colours and dashes that the style sheet knows."""


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
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [step * i for i in range(first, last + 1)]

    def at(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
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
    found = []
    for value in y.ticks:
        at = place(x, y, (x.low, value))[1]
        found.append(tag("line", x1=LEFT, x2=right, y1=at, y2=at, class_="grid"))
        found.append(tag("text", y.show(value), x=LEFT - 6, y=at + 4, class_="end"))
    for value in x.ticks:
        at = place(x, y, (value, y.low))[0]
        found.append(tag("text", x.show(value), x=at, y=bottom + 16, class_="mid"))
    middle = (LEFT + right) / 2
    found.append(tag("text", x.label, x=middle, y=HEIGHT - 6, class_="mid axis"))
    up = (TOP + bottom) / 2
    turned = f"translate(12 {number(up)}) rotate(-90)"
    return [*found, tag("text", y.label, transform=turned, class_="mid axis")]


def _line(one: Series, x: Axis, y: Axis) -> list[Html]:
    spots = [place(x, y, point) for point in one.points]
    points = " ".join(f"{number(a)},{number(b)}" for a, b in spots)
    style = f"s{one.style % STYLES}"
    dashed = " dashed" if one.dashed else ""
    found = [tag("polyline", points=points, class_=f"line {style}{dashed}")]
    if one.marks:
        found += [tag("circle", cx=a, cy=b, r=3, class_=f"dot {style}") for a, b in spots]
    return found


def legend(series: Sequence[Series]) -> Html:
    """The names of the lines, as a list that wraps on a narrow screen."""
    return tag("ul", [tag("li", _swatch(one), " ", one.name) for one in series], class_="legend")


def _swatch(one: Series) -> Html:
    dashed = " dashed" if one.dashed else ""
    line = tag("line", x1=0, x2=26, y1=6, y2=6, class_=f"line s{one.style % STYLES}{dashed}")
    return tag("svg", line, width=26, height=12, aria_hidden="true")
