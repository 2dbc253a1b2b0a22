"""The map of tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sharespace.page.families import Relations
from sharespace.page.heat import LETTER
from sharespace.page.markup import Html, number, tag, visible
from sharespace.page.words import letters, short

_WIDTH, _HEIGHT, _EDGE = 480, 300, 22
_LONGEST_POINT_NAME = 22
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
"""A family is known by its sign, too."""


def task_map(names: Sequence[str], relations: Relations) -> Html:
    """Dots with names where they fit; every dot has its name as a tooltip."""
    spots = _spots(relations.points)
    dots = [
        _dot(name, spot, family)
        for name, spot, family in zip(names, spots, relations.family, strict=True)
    ]
    written = list(_labels(names, spots))
    return tag(
        "svg",
        tag("title", f"Map of {len(names)} tasks by the cosines of their updates."),
        dots,
        written,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        class_="chart map",
    )


def _spots(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """One scale for both axes, so that distances can be compared."""
    wide = [max(p[i] for p in points) - min(p[i] for p in points) for i in (0, 1)]
    room = (_WIDTH - 2 * _EDGE, _HEIGHT - 2 * _EDGE)
    scales = [r / w for r, w in zip(room, wide, strict=True) if w > 1e-9]
    scale = min(scales, default=1.0)
    middle = [(max(p[i] for p in points) + min(p[i] for p in points)) / 2 for i in (0, 1)]
    return [
        (_WIDTH / 2 + (x - middle[0]) * scale, _HEIGHT / 2 - (y - middle[1]) * scale)
        for x, y in points
    ]


def _dot(name: str, spot: tuple[float, float], family: int | None) -> Html:
    known = family is not None and family < len(_SIGNS)
    sign = _SIGNS[family] if family is not None and known else "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z"
    at = f"translate({number(spot[0])} {number(spot[1])})"
    style = f"sign s{family}" if known else "sign none"
    return tag("path", tag("title", name), d=sign, transform=at, class_=style)


def _labels(names: Sequence[str], spots: Sequence[tuple[float, float]]) -> Iterator[Html]:
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    for i, (name, (x, y)) in enumerate(zip(names, spots, strict=True)):
        text = short(visible(name), _LONGEST_POINT_NAME)
        wide = letters(text) * LETTER + 2
        for left, top, anchor in _sides(x, y, wide):
            box = (left, top, left + wide, top + 11)
            others = taken[:i] + taken[i + 1 :]
            if _inside(box) and not any(_meet(box, other) for other in others):
                taken.append(box)
                at = (
                    left + 1
                    if anchor == "start"
                    else left + wide / 2
                    if anchor == "mid"
                    else left + wide - 1
                )
                yield tag("text", text, x=at, y=top + 9, class_=f"name {anchor}")
                break


def _sides(x: float, y: float, wide: float) -> Iterator[tuple[float, float, str]]:
    """Left and top edge of a name at the right, left, above and below a dot."""
    yield x + 7, y - 5.5, "start"
    yield x - 7 - wide, y - 5.5, "end"
    yield x - wide / 2, y - 18, "mid"
    yield x - wide / 2, y + 7, "mid"


def _inside(box: tuple[float, float, float, float]) -> bool:
    return box[0] >= 0 and box[1] >= 0 and box[2] <= _WIDTH and box[3] <= _HEIGHT


def _meet(one: Sequence[float], two: Sequence[float]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
