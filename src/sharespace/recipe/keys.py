"""How a recipe's dataclasses say what a key may hold: types by annotation, limits by metadata."""

from __future__ import annotations

import inspect
import ast
from ast import AnnAssign, ClassDef, Constant, Expr, Name
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Limits:
    """What a value may be, beyond its type; None: no limit."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __str__(self) -> str:
        words = (("at least", self.least), ("above", self.above))
        ends = (("at most", self.most), ("below", self.below))
        return " and ".join(f"{w} {v:g}" for w, v in (*words, *ends) if v is not None)

    def allow(self, value: float) -> bool:
        return not (
            (self.least is not None and value < self.least)
            or (self.above is not None and value <= self.above)
            or (self.most is not None and value > self.most)
            or (self.below is not None and value >= self.below)
        )


def key(default: Any = MISSING, *, neutral: bool = False, **limits: float) -> Any:
    """A dataclass field that is a key of the recipe.

    Args:
        default: none: the key is needed.
        neutral: its value changes no result (a path of outputs, a tracker).
        limits: of ``Limits``.
    """
    metadata = {"key": True, "neutral": neutral, "limits": Limits(**limits)}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Key:
    """One key, as the reader and the reference page need it."""

    name: str
    choices: tuple[str, ...]
    """Of a Literal; else empty."""
    type: Any
    """bool, int, float, str, Source, or tuple for a list of texts; str for a Literal."""
    optional: bool
    """It may be null."""
    default: Any
    """MISSING where the key is needed."""
    limits: Limits
    neutral: bool

    @property
    def needed(self) -> bool:
        return self.default is MISSING


def keys_of(group: type) -> Mapping[str, Key]:
    """The keys that a dataclass holds itself, in order."""
    found: Any = group  # Classes are hashable, which mypy does not see
    return _keys_of(found)


@cache
def _keys_of(group: type) -> Mapping[str, Key]:
    hints = get_type_hints(group)
    own = [f for f in fields(group) if f.metadata.get("key")]
    return {f.name: _key(f.name, hints[f.name], f.default, f.metadata) for f in own}


def _key(name: str, hint: Any, default: Any, metadata: Mapping[str, Any]) -> Key:
    kind, optional = _without_none(hint)
    choices: tuple[str, ...] = get_args(kind) if get_origin(kind) is Literal else ()
    plain = str if choices else (get_origin(kind) or kind)
    return Key(name, choices, plain, optional, default, metadata["limits"], metadata["neutral"])


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) not in (Union, UnionType):
        return hint, False
    (kind,) = (a for a in get_args(hint) if a is not NoneType)
    return kind, True


def texts_of(group: type) -> dict[str, str]:
    """Key -> the docstring under its field, on one line."""
    (body,) = (n.body for n in ast.parse(inspect.getsource(group)).body if isinstance(n, ClassDef))
    return {name: " ".join(text.split()) for name, text in _documented(body)}


def _documented(body: list[Any]) -> Iterator[tuple[str, str]]:
    for statement, after in pairwise(body):
        named = isinstance(statement, AnnAssign) and isinstance(statement.target, Name)
        if named and isinstance(after, Expr) and isinstance(after.value, Constant):
            yield statement.target.id, str(after.value.value)
