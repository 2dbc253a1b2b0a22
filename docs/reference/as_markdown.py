"""For mkdocstrings: examples and drawings in docstrings as Markdown blocks."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^>>>.*\n?)+", re.MULTILINE)
_DRAWING = re.compile(r"^::\n\n((?: {4}.*\n|\n)+)", re.MULTILINE)


class AsMarkdown(griffe.Extension):
    """``>>> ...`` becomes a block of code without doctest's flags; what follows ``::`` a block."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = _EXAMPLE.sub(lambda m: _block("python", _plain(m[0])), obj.docstring.value)
            obj.docstring.value = _DRAWING.sub(lambda m: _block("text", m[1]), text)


def _plain(example: str) -> str:
    lines = [re.sub(r" *# doctest:.*", "", line[4:]) for line in example.splitlines()]
    return "\n".join(lines)


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text.strip(chr(10))}\n```\n"
