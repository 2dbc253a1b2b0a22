"""HTML and SVG whose text is escaped by construction.

Names of tasks and modules come from files of strangers. Everything that is put into an element is
escaped, except what these functions made themselves (``Html``).
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias

Child: TypeAlias = "str | Iterable[Child]"
Attribute: TypeAlias = "str | float | bool | None"

_EMPTY = {"meta", "link", "br", "hr", "input", "wbr"}
_SHAPES = {"path", "rect", "line", "circle", "polyline"}


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(text: str) -> str:
    """Text as it may stand in an element or between double quotes.

    Characters that cannot be seen (controls, surrogates, changes of direction) are shown as
    Python's escapes, so that no name can hide or turn around what stands beside it.
    """
    return html.escape(visible(text), quote=True)


def visible(text: str) -> str:
    """Text with what cannot be seen as escapes: ``line\\nbreak``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """An element.

    Args:
        name: of the element.
        children: text (escaped), ``Html`` (as it is), or iterables of them.
        attributes: ``class_`` is class, ``stroke_width`` stroke-width; None and False are left
            out, True stands without a value.
    """
    opened = name + "".join(_attribute(k, v) for k, v in attributes.items())
    if name in _SHAPES and not children:
        return Html(f"<{opened}/>")
    return Html(f"<{opened}>" if name in _EMPTY else f"<{opened}>{join(children)}</{name}>")


def dotted(name: str) -> Html:
    """A module's name that may break after its dots, and only there where there is room."""
    parts = name.split(".")
    return join([[f"{part}.", tag("wbr")] for part in parts[:-1]] + [parts[-1:]])


def join(children: Child) -> Html:
    """The children one after the other."""
    if isinstance(children, str):
        return children if isinstance(children, Html) else Html(escape(children))
    return Html("".join(join(child) for child in children))


def _attribute(name: str, value: Attribute) -> str:
    key = name.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {key}"
    text = value if isinstance(value, str) else number(value)
    return f' {key}="{escape(text)}"'


def number(value: float) -> str:
    """A coordinate: at most one digit after the point."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text
