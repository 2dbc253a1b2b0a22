"""Does what a page shows look like what was printed? Text counts, numbers do not."""

from __future__ import annotations

import json
import re

_NUMBER = re.compile(r"~?[+-]?\d[\d.,]*(e[+-]?\d+)?%?( (B|kB|MB|GB)\b)?")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_KEY = re.compile(r'"([^"]+)": ')
_PATH = re.compile(r"(\w+\.){2,}\w+")
"""A module of the base model: which one is the worst may depend on rounding."""


def differences(shown: str, printed: str) -> list[str]:
    """Lines of ``shown`` that are not in ``printed``; ``...`` stands for lines left out.

    Of JSON only the names are looked at.
    """
    if shown.lstrip().startswith("{"):
        json.loads(printed)
        missing = set(_KEY.findall(shown)) - set(_KEY.findall(printed))
        return [f'"{name}"' for name in sorted(missing)]
    lines = iter([plain(line) for line in printed.splitlines()])
    return [
        line
        for line in shown.splitlines()
        if plain(line) not in ("", "...") and plain(line) not in lines
    ]


def plain(line: str) -> str:
    """A line without its numbers, module names and spacing."""
    line = _TIME.sub("#", line)
    line = _PATH.sub("#", line)
    return " ".join(_NUMBER.sub("#", line).split())
