"""One value of a recipe: from a YAML node to what the key's type says, or why not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from sharespace.recipe.document import BOOL, BOOLEANS, NULL, SCALARS, TEXT
from sharespace.recipe.keys import Key
from sharespace.recipe.source import Source

# As people write numbers: 1e-3 too, which YAML 1.1 takes for text; no octal and no 1:30, which it
# takes for numbers.
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[-+]?([0-9]{1,18}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][-+]?[0-9]{1,3})?")
_UNUSABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


class UnusableError(Exception):
    """Why a node is no value of the key."""


def value_of(key: Key, node: yaml.Node, folder: Path) -> Any:
    """What the key holds.

    Args:
        folder: the recipe's, for relative paths.

    Raises:
        UnusableError: it is none that the key may have; the text says why.
    """
    if isinstance(node, yaml.ScalarNode) and node.tag == NULL:
        if key.optional:
            return None
        raise UnusableError(
            "is empty; leave it out for its default" if not key.needed else "is empty"
        )
    if key.type is tuple:
        return _texts(node)
    value = _READERS[key.type](_scalar(node))
    if key.choices and value not in key.choices:
        choices = ", ".join(key.choices)
        raise UnusableError(f"is {brief(value)!r}, not one of {choices}{hint(value, key.choices)}")
    if key.type in (int, float) and not key.limits.allow(value):
        raise UnusableError(f"is {value}, but it must be {key.limits}")
    if key.type is Path:
        return Source.of(value, folder).path
    return Source.of(value, folder) if key.type is Source else value


def hint(name: str, known: tuple[str, ...]) -> str:
    """``; did you mean ...?`` where a known name is near."""
    near = get_close_matches(name[:80], known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _scalar(node: yaml.Node) -> yaml.ScalarNode:
    if not isinstance(node, yaml.ScalarNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
        raise UnusableError(f"is {kind}, but one value is wanted")
    if node.tag not in SCALARS:
        raise UnusableError(f"has the tag {brief(node.tag)!r}, which is not read")
    return node


def _texts(node: yaml.Node) -> tuple[str, ...]:
    """A list of texts; one text alone is a list of one."""
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    found = tuple(_text(_scalar(item)) for item in items)
    twice = [x for i, x in enumerate(found) if x in found[:i]]
    if twice:
        raise UnusableError(f"has {brief(twice[0])!r} twice")
    return found


def _text(node: yaml.ScalarNode) -> str:
    """As it is written: a label ``no`` is no boolean, a name ``007`` no number."""
    text: str = node.value
    if node.tag == NULL or not text.strip():
        raise UnusableError("has an empty text")
    if _UNUSABLE.search(text):
        raise UnusableError("holds control characters")
    return text


def _flag(node: yaml.ScalarNode) -> bool:
    if node.tag != BOOL or node.value.lower() not in BOOLEANS:
        raise UnusableError(f"is {brief(node.value)!r}, but true or false is wanted")
    return BOOLEANS[node.value.lower()]


def _whole(node: yaml.ScalarNode) -> int:
    if _is_text(node) or not _WHOLE.fullmatch(node.value):
        raise UnusableError(
            f"is {brief(node.value)!r}, but a whole number is wanted{_quotes(node)}"
        )
    return int(node.value)


def _number(node: yaml.ScalarNode) -> float:
    found = math.inf if _is_text(node) or not _NUMBER.fullmatch(node.value) else float(node.value)
    if not math.isfinite(found):
        raise UnusableError(f"is {brief(node.value)!r}, but a number is wanted{_quotes(node)}")
    return found


def _is_text(node: yaml.ScalarNode) -> bool:
    """It stands in quotes or has the tag ``!!str``: text on purpose."""
    return node.tag == TEXT and (node.style is not None or not _NUMBER.fullmatch(node.value))


def _quotes(node: yaml.ScalarNode) -> str:
    return ": leave out the quotes" if node.style in ("'", '"') else ""


def brief(text: str) -> str:
    """A text as errors show it."""
    return text if len(text) <= 60 else text[:57] + "..."


_READERS: dict[type, Callable[[yaml.ScalarNode], Any]] = {
    bool: _flag,
    int: _whole,
    float: _number,
    str: _text,
    Path: _text,
    Source: _text,
}
