"""Mixtures of tasks by name: ``legal:0.7+medical:0.3``, as requests ask for them.

::

    mixture = part *("+" part)
    part    = name ":" weight
    weight  = ["-"] digits ["." digits]          every part has one

In a name ``:``, ``+`` and ``%`` are written ``%3A``, ``%2B`` and ``%25``. One part alone scales a
task. No new task may have a name that reads as a mixture (``state.name_problem``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal

from sharespace.errors import OptionError

DEFAULT_COMBINATION = "linear"
"""The method of a combination where none is named, and that of every mixture."""

_PART = re.compile(r"([^:+]+):(-?[0-9]+(?:\.[0-9]*)?|-?\.[0-9]+)")
_ESCAPES = {"%": "%25", ":": "%3A", "+": "%2B"}
_ESCAPED = re.compile("%(25|3a|2b)", re.IGNORECASE)


def parse_mixture(text: str) -> dict[str, float] | None:
    """Weights by task of a mixture's name; None: it is no mixture, but may be a task's name.

    Args:
        text: for example ``legal:0.7+medical:-0.3``.

    Raises:
        OptionError: it reads as a mixture, and a task stands in it twice or a weight is infinite.
    """
    matches = [_PART.fullmatch(part) for part in text.split("+")]
    weights: dict[str, float] = {}
    for match in matches:
        if match is None:
            return None
        name, weight = _ESCAPED.sub(_unescaped, match[1]), float(match[2])
        if name in weights or not math.isfinite(weight):
            why = f"{name!r} is in it twice" if name in weights else f"the weight of {name!r}"
            remedy = "Give each task one weight, a number such as 0.7"
            raise OptionError(f"mixture {text[:80]!r}", why, remedy)
        weights[name] = weight
    return weights


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 16))


def mixture_name(weights: Mapping[str, float]) -> str:
    """The name of a mixture, which ``parse_mixture`` reads again.

    Args:
        weights: task -> finite weight.
    """
    return "+".join(f"{escaped(name)}:{_digits(weight)}" for name, weight in weights.items())


def escaped(name: str) -> str:
    """A task's name as it stands in the name of a mixture."""
    return "".join(_ESCAPES.get(character, character) for character in name)


def _digits(weight: float) -> str:
    """All digits of a number without an exponent, whose "+" would end the part."""
    # Through repr, which has the fewest digits that give the same number again.
    return format(Decimal(repr(float(weight))), "f")
