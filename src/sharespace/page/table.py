"""Tables that scroll in their box; a script may sort them, and they read well without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sharespace.page.markup import Child, Html, tag


@dataclass(frozen=True)
class Figure:
    """A number in a cell, flush right."""

    text: str
    value: float
    """To sort by."""
    alarm: bool = False


@dataclass(frozen=True)
class Note:
    """Words in a cell."""

    text: str
    value: float | None = None
    """To sort by; None: by the words."""
    more: str = ""
    """Shown when the pointer rests there."""


TableCell: TypeAlias = "str | Figure | Note"


def table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[TableCell]], sortable: bool = True
) -> Html:
    """A table whose first column names the row.

    Args:
        caption: what it shows, for those who cannot see it.
        heads: of the columns; those of figures are flush right.
        rows: as long as the heads.
        sortable: False where the order says something.
    """
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
        return tag("td", cell.text, title=cell.more or None, data_v=value)
    return tag("td", cell)
