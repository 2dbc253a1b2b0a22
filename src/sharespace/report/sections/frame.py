"""What all sections are made of: headings, figures, and layers as the columns of a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from sharespace.report.html import Child, Html, tag
from sharespace.report.study import by_kind, labels

MOST_COLUMNS = 160
"""Columns of a map; with more layers a column is several."""


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
