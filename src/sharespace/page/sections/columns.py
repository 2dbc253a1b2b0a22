"""Layers as the columns of a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from sharespace.page.groups import by_kind, labels

MOST_COLUMNS = 160
"""Columns of a map; with more layers a column is several."""


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
    found: list[tuple[str, ...]] = []
    groups = []
    named = labels(list(kinds))
    for kind, members in kinds.items():
        parts = [tuple(members[i : i + each]) for i in range(0, len(members), each)]
        found += parts
        groups.append((named[kind], len(parts)))
    return Columns(tuple(found), tuple(groups))
