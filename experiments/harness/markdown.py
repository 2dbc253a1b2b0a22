"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_RULES = {"l": "---", "r": "--:"}


def table(header: str, rows: Iterable[Sequence[object]], align: str = "l") -> str:
    """Rows of cells under the names of their columns; no line break at the end.

    Args:
        header: the names, as in ``task | score``.
        rows: cells of each.
        align: ``l`` or ``r`` of each column; the last is that of all further ones.
    """
    align = align.ljust(header.count(" | ") + 1, align[-1])
    lines = [f"| {header} |", f"|{'|'.join(_RULES[letter] for letter in align)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def section(
    heading: str, text: str, header: str, rows: Iterable[Sequence[object]], align: str = "l"
) -> str:
    """A table below its heading and what has to be known to read it."""
    return f"{heading}\n\n{text}\n\n{table(header, rows, align)}\n"
