"""Tables of a terminal: as wide as it is, with names cut in the middle and figures whole."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.markup import escape as escape_markup
from rich.table import Table
from rich.text import Text

from sharespace.report.html import short


def fitted(table: Table, width: int) -> Table:
    """The table at most that wide: names lose their middles, and figures stay whole."""
    heads = [str(column.header) for column in table.columns]
    cells = [list(map(str, column.cells)) for column in table.columns]
    widths = [
        max(map(cell_len, [*head.split(), *column]))
        for head, column in zip(heads, cells, strict=True)
    ]
    texts = [i for i, head in enumerate(heads) if i == 0 or head == "worst layer's name"]
    room = width - sum(widths) - 2 * (len(heads) - 1)
    wrapped = sum(max(cell_len(h) - w, 0) for h, w in zip(heads, widths, strict=True))
    # Where heads must wrap, rich would take the room from the names, a letter a line.
    if room < wrapped:
        # The longest gives way first: what is left is shared evenly by those that need more.
        room = max(room + sum(widths[i] for i in texts), 8 * len(texts))
        for at, i in enumerate(sorted(texts, key=lambda i: widths[i])):
            widths[i] = min(widths[i], room // (len(texts) - at))
            cells[i], room = _cut(cells[i], widths[i]), room - widths[i]
        table = new_table(*heads)
        for row in zip(*cells, strict=True):
            table.add_row(*row)
        for column, most in zip(table.columns, widths, strict=True):
            column.width = most
    return table


def _cut(names: Sequence[str], width: int) -> list[str]:
    """Names of at most that width, without their middles; those that look alike are numbered."""
    shown: list[str] = []
    for name in names:
        plain = Text.from_markup(name).plain
        text, alike = _without_middle(plain, width), 1
        while text in shown:
            alike += 1
            text = f"{_without_middle(plain, width - len(f'~{alike}'))}~{alike}"
        shown.append(text)
    return list(map(escape_markup, shown))


def _without_middle(name: str, width: int) -> str:
    """By the cells that a terminal draws: letters of East Asia take two."""
    return next(t for most in range(width, 0, -1) if cell_len(t := short(name, most)) <= width)


def new_table(first: str, *others: str) -> Table:
    """Names whole on the left, figures flush right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for title in others:
        table.add_column(title, justify="right", overflow="fold")
    return table
