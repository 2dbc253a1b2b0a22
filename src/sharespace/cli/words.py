"""Numbers as a terminal says them; bytes and counts as the report does."""

from __future__ import annotations

from sharespace.page.words import count, human

__all__ = ["count", "human", "percent"]


def percent(error: float) -> str:
    """A relative error for people; only what is exactly nothing is called 0."""
    if error == 0:
        return "0"
    return f"{error:.1e}" if error < 1e-3 else f"{error:.1%}"
