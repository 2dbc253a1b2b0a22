"""Numbers as a terminal says them."""

from __future__ import annotations


def human(nbytes: float) -> str:
    """1234567 -> 1.23 MB, powers of ten."""
    for unit in ("B", "kB", "MB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.2f} GB"


def percent(error: float) -> str:
    """A relative error for people; only what is exactly nothing is called 0."""
    if error == 0:
        return "0"
    return f"{error:.1e}" if error < 1e-3 else f"{error:.1%}"


def count(number: int, noun: str) -> str:
    """1 task, 2 tasks."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
