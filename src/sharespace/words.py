"""Numbers as people read them: counts, bytes and errors.

The command line, the report and the streams say numbers in these words.
"""

from __future__ import annotations


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
