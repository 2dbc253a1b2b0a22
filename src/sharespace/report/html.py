"""HTML and SVG whose text is escaped by construction; tables, headings, figures, columns of a map.

Names of tasks and modules come from files that anybody may have written. Everything that is put
into an element is escaped, except what these functions made themselves (``Html``).
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

from sharespace.report.study import by_kind, labels
from sharespace.words import visible

Child: TypeAlias = "str | Iterable[Child]"

Attribute: TypeAlias = "str | float | bool | None"

_EMPTY = {"meta", "link", "br", "hr", "input", "wbr"}

_SHAPES = {"path", "rect", "line", "circle", "polyline"}

TableCell: TypeAlias = "str | Figure | Note"


MOST_COLUMNS = 160
"""Columns of a map; with more layers a column is several."""


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(text: str) -> str:
    """Text as it may stand in an element or between double quotes.

    Characters that cannot be seen are shown as escapes, see ``visible``.
    """
    return html.escape(visible(text), quote=True)


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """An element.

    Args:
        name: of the element.
        children: text (escaped), ``Html`` (as it is), or iterables of them.
        attributes: ``class_`` is class, ``stroke_width`` stroke-width; None and False are left
            out, True stands without a value.
    """
    opened = name + "".join(_attribute(k, v) for k, v in attributes.items())
    if name in _SHAPES and not children:
        return Html(f"<{opened}/>")
    return Html(f"<{opened}>" if name in _EMPTY else f"<{opened}>{join(children)}</{name}>")


def dotted(name: str) -> Html:
    """A module's name that may break after its dots, and only there where there is room."""
    parts = name.split(".")
    return join([[f"{part}.", tag("wbr")] for part in parts[:-1]] + [parts[-1:]])


def join(children: Child) -> Html:
    """The children one after the other."""
    if isinstance(children, str):
        return children if isinstance(children, Html) else Html(escape(children))
    return Html("".join(join(child) for child in children))


def _attribute(name: str, value: Attribute) -> str:
    key = name.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {key}"
    text = value if isinstance(value, str) else number(value)
    return f' {key}="{escape(text)}"'


def number(value: float) -> str:
    """A coordinate: at most one digit after the point."""
    # One digit is a tenth of a pixel, and keeps pages of ten thousand cells small.
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


@dataclass(frozen=True)
class Figure:
    """A number in a cell of a table, flush right."""

    text: str
    value: float
    """The number that a script sorts by."""
    alarm: bool = False


@dataclass(frozen=True)
class Note:
    """Words in a cell of a table."""

    text: str
    value: float | None = None
    """The number that a script sorts by; None: it sorts by the words."""
    hint: str = ""
    """Shown when the pointer rests there."""


def table(
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[TableCell]],
    sortable: bool = True,
    shown: int | None = None,
) -> Html:
    """A table whose first column names the row.

    Args:
        caption: what it shows, for those who cannot see it.
        heads: of the columns; those of figures are flush right.
        rows: as long as the heads.
        sortable: False where the order says something.
        shown: rows before all are asked for; without scripts, and on paper, all are there.
    """
    # All rows are alike, so the first one says which columns are figures.
    flush = [isinstance(cell, Figure) for cell in rows[0]] if rows else [False] * len(heads)
    head = [
        tag("th", name, scope="col", class_="n" if right else None)
        for name, right in zip(heads, flush, strict=True)
    ]
    body = [tag("tr", [_cell(cell, at == 0) for at, cell in enumerate(row)]) for row in rows]
    whole = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", head)),
        tag("tbody", body),
        class_="sortable" if sortable else None,
        data_shown=None if shown is None or len(rows) <= shown else str(shown),
    )
    return scrolling(caption, whole)


def scrolling(name: str, *children: Child) -> Html:
    """A box that scrolls what is wider than the page, by keyboard too."""
    return tag("div", *children, class_="scroll", tabindex="0", role="region", aria_label=name)


def _cell(cell: TableCell, first: bool) -> Html:
    if first:
        return tag("th", cell if isinstance(cell, str) else cell.text, scope="row")
    if isinstance(cell, Figure):
        style = "n alarm" if cell.alarm else "n"
        return tag("td", cell.text, class_=style, data_v=f"{cell.value:.6g}")
    if isinstance(cell, Note):
        value = None if cell.value is None else f"{cell.value:.6g}"
        return tag("td", cell.text, title=cell.hint or None, data_v=value)
    return tag("td", cell)


def span(values: Sequence[int]) -> str:
    """The smallest to the largest: 4, or 4 to 8."""
    if not values:
        return "none"
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def some(names: Sequence[str], most: int = 5) -> str:
    """a, b, c and 4 more."""
    shown = ", ".join(short(name, 40) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def short(name: str, most: int) -> str:
    """A long name without its middle."""
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[len(name) - (most - 1 - head) :]}"


def letters(text: str) -> int:
    """Width in Latin letters: those of East Asia and pictures take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def section(name: str, title: str, *children: Child) -> Html:
    """A part of the page.

    Args:
        name: where links lead (``#name``).
        title: its heading.
    """
    heading = tag("h2", title, id=f"{name}-title")
    return tag("section", heading, *children, id=name, aria_labelledby=f"{name}-title")


def figure(caption: Child, *children: Child, style: str | None = None) -> Html:
    """A picture with what it says below; ``style`` is a class of the style sheet."""
    return tag("figure", *children, tag("figcaption", caption), class_=style)


def details(title: str, *children: Child) -> Html:
    """Shown when it is asked for, and in print."""
    return tag("details", tag("summary", title), *children)


def read(*children: Child) -> Html:
    """A sentence on how to read what follows."""
    return tag("p", *children, class_="read")


def readout() -> Html:
    """Where the script writes what the pointer is at."""
    return tag("p", "Point at a cell to read it.", class_="readout js", aria_live="polite")


@dataclass(frozen=True)
class Columns:
    """Layers side by side, those of one kind together."""

    modules: tuple[tuple[str, ...], ...]
    """By column; more than one where there are too many layers."""
    groups: tuple[tuple[str, int], ...]
    """(kind, columns)."""

    @property
    def names(self) -> list[str]:
        """What a column is called."""
        return [m[0] if len(m) == 1 else f"{m[0]} to {m[-1]}" for m in self.modules]

    @property
    def most(self) -> int:
        """Layers in the fullest column."""
        return max(map(len, self.modules), default=1)


def columns(modules: Sequence[str], most: int = MOST_COLUMNS) -> Columns:
    """Put layers of one kind side by side, and several into one column where they are too many."""
    kinds = by_kind(modules)
    each = ceil(len(modules) / most)
    by_column: list[tuple[str, ...]] = []
    groups = []
    named = labels(list(kinds))
    for kind, members in kinds.items():
        parts = [tuple(members[i : i + each]) for i in range(0, len(members), each)]
        by_column += parts
        groups.append((named[kind], len(parts)))
    return Columns(tuple(by_column), tuple(groups))
