"""Numbers and names as people read them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def human(nbytes: float) -> str:
    """1234567 -> 1.23 MB, powers of ten."""
    for unit in ("B", "kB", "MB"):
        if abs(nbytes) < 999.5:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.2f} GB"


def percent(part: float) -> str:
    """A relative error; only what is exactly nothing is called 0."""
    if part == 0:
        return "0"
    return f"{part:.0e}" if abs(part) < 5e-4 else f"{100 * part:.3g} %"


def count(number: int, noun: str) -> str:
    """1 task, 2 tasks."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


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
