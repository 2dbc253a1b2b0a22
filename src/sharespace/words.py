"""Numbers, names and errors as people read them.

The command line, the report and the streams say numbers in these words. Names of tasks and modules
come from files that anybody may have written: whatever shows one shows it by ``visible``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sharespace.errors import RecipeError, SharespaceError


def visible(text: str) -> str:
    """Text with what cannot be seen as Python's escapes: ``line\\nbreak``.

    Controls, surrogates and changes of direction are shown, so that no name can hide or turn around
    what stands beside it, or tell a terminal what to do.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def error_text(error: SharespaceError) -> str:
    """An error for a terminal: one line, or one for each problem of a recipe."""
    if isinstance(error, RecipeError):
        problems = tuple(map(visible, error.problems))
        return str(RecipeError(visible(error.what), problems, visible(error.remedy)))
    return visible(str(error))


def first_line(error: BaseException) -> str:
    """What an error of another library says, without the lines of a backtrace behind it."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def count(number: int, noun: str) -> str:
    """A number of things: ``1 task``, ``2 tasks``, ``1,024 tasks``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def human(nbytes: float) -> str:
    """Bytes in powers of ten: 1234567 is ``1.23 MB``."""
    for unit in ("B", "kB", "MB"):
        # From 999.5 on three digits would round to 1000, which the next unit writes as 1.
        if abs(nbytes) < 999.5:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.2f} GB"


def percent(fraction: float) -> str:
    """A fraction, such as a relative error: 0.1234 is ``12.3 %``, 1e-6 is ``1e-06``.

    Only what is exactly zero is called 0: an error of the rounding of float32 is not.
    """
    if fraction == 0:
        return "0"
    # Below 0.05 % three digits of a percentage say less than the power of ten.
    return f"{fraction:.0e}" if abs(fraction) < 5e-4 else f"{100 * fraction:.3g} %"


def words_of_start(weights: Mapping[str, float]) -> str:
    """Known tasks that a task started from: ``a``, ``a (0.75)``, or ``a (0.5), b (0.25)``.

    Args:
        weights: known task -> weight; a weight of 1 is not said.
    """
    return ", ".join(
        name if weight == 1 else f"{name} ({weight:.2f})" for name, weight in weights.items()
    )


def first_names(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(map(visible, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def k_span(dimensions: Iterable[tuple[int, int]]) -> str:
    """The smallest and the largest dimension of any layer and side: ``k 4 to 16``."""
    sides = [k for pair in dimensions for k in pair]
    return f"k {min(sides)} to {max(sides)}" if sides else "no layers"
