"""Values that are there by what a recipe or a run guarantees."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def present(value: T | None, what: str) -> T:
    """The value.

    Args:
        what: the thing, and why it must be there.

    Raises:
        RuntimeError: it is not: a fault in sharespace itself.
    """
    if value is None:
        raise RuntimeError(f"{what}: missing. This is a fault in sharespace; please report it")
    return value
