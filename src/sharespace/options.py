"""Options as dataclass fields that know their limits.

``option`` declares one, ``check_options`` refuses values outside of them. Every class of settings
declares its fields with ``option`` and calls ``check_options`` where it is made, so that a value
is checked once, by one rule, wherever it comes from: Python, the command line or a recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sharespace.errors import OptionError


@dataclass(frozen=True)
class Limits:
    """What a number may be, beyond its type; None: no limit on that side."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __str__(self) -> str:
        words = (("at least", self.least), ("above", self.above))
        ends = (("at most", self.most), ("below", self.below))
        return " and ".join(f"{w} {v:g}" for w, v in (*words, *ends) if v is not None)

    def allow(self, value: float) -> bool:
        """True where the value lies inside all four limits; NaN never does."""
        return not (
            math.isnan(value)
            or (self.least is not None and value < self.least)
            or (self.above is not None and value <= self.above)
            or (self.most is not None and value > self.most)
            or (self.below is not None and value >= self.below)
        )


def option(
    default: Any = MISSING,
    *,
    choices: Callable[[], tuple[str, ...]] | None = None,
    neutral: bool = False,
    in_recipe: bool = True,
    **limits: float,
) -> Any:
    """A dataclass field that is an option.

    Args:
        default: the value where none is given; left out: the option is needed.
        choices: gives the texts that it may be, where these are no Literal but can be added to.
        neutral: True where its value changes no result (a path of outputs, a tracker): such a key
            of a recipe may change while a stream is under way.
        in_recipe: False where the class is part of a recipe, but this field is no key of it.
        limits: of ``Limits``: ``least``, ``above``, ``most``, ``below``.
    """
    metadata = {
        "limits": Limits(**limits),
        "choices": choices,
        "neutral": neutral,
        "in_recipe": in_recipe,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class OptionType:
    """What the annotation of an option says."""

    kind: Any
    """bool, int, float, str or another class; str for a Literal; tuple for a list of texts."""
    choices: tuple[str, ...] = ()
    """The values of a Literal; else empty."""
    optional: bool = False
    """True where the option may be None."""
    words: tuple[str, ...] = ()
    """Texts that it may be in the place of a value of its kind, such as ``"auto"`` for a number."""


def option_type(hint: Any) -> OptionType:
    """The type behind an annotation such as ``int | None``, ``Literal["a", "b"]`` or
    ``float | Literal["auto"]``."""
    optional = False
    words: tuple[str, ...] = ()
    if get_origin(hint) in (Union, UnionType):
        optional = NoneType in get_args(hint)
        plain = [kind for kind in get_args(hint) if kind is not NoneType]
        if len(plain) == 2:
            # A value, or one of the words that stand for one.
            words = next((get_args(kind) for kind in plain if get_origin(kind) is Literal), ())
            plain = [kind for kind in plain if not words or get_origin(kind) is not Literal]
        if len(plain) != 1:
            # More than one type: nothing is known of the value but that it may be None.
            return OptionType(object, (), optional)
        hint = plain[0]
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = str if choices else (get_origin(hint) or hint)
    return OptionType(kind, choices, optional, words)


def with_choices(declared: OptionType, metadata: Mapping[str, Any]) -> OptionType:
    """The type of an option with the texts that it may be now, where these can be added to."""
    choices = metadata["choices"]
    return declared if choices is None else replace(declared, choices=choices())


def check_options(settings: Any) -> None:
    """Refuse a value that an option may not have; to be called in ``__post_init__``.

    Whole numbers count as floats, but neither floats nor booleans count as whole numbers:
    ``k=2.5`` and ``k=True`` are mistakes. NaN lies outside of any limits.

    Args:
        settings: an instance of a dataclass whose fields are made by ``option``.

    Raises:
        OptionError: the first value of a wrong type, outside its limits, or not among its choices.
    """
    group: Any = type(settings)  # Classes are hashable, which mypy does not see.
    types = _types(group)
    for declared in fields(settings):
        if "limits" in declared.metadata:
            check_option(
                declared.name,
                getattr(settings, declared.name),
                with_choices(types[declared.name], declared.metadata),
                declared.metadata["limits"],
            )


def check_option(name: str, value: object, wanted: OptionType, limits: Limits) -> None:
    """Refuse one value; see ``check_options``.

    Raises:
        OptionError: it is of a wrong type, outside its limits, or not among its choices.
    """
    if (value is None and wanted.optional) or (isinstance(value, str) and value in wanted.words):
        return
    if wanted.choices:
        if value not in wanted.choices:
            known = ", ".join(map(repr, wanted.choices))
            raise OptionError(f"{name}={value!r}", "is not known", f"Choose one of {known}")
        return
    if not _is_of(value, wanted.kind):
        raise OptionError(
            f"{name}={value!r}",
            f"is {_named(type(value))}, but {_wanted(wanted)} is needed",
            f"Give {_wanted(wanted)}",
        )
    if isinstance(value, Real) and not limits.allow(float(value)):
        raise OptionError(f"{name}={value!r}", f"must be {limits}", "Change it")


_NAMES: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a tuple of texts",
}


def _wanted(option: OptionType) -> str:
    return " or ".join([_NAMES.get(option.kind, str(option.kind)), *map(repr, option.words)])


def _named(kind: type) -> str:
    return _NAMES.get(kind, f"a {kind.__name__}")


def _is_of(value: object, kind: Any) -> bool:
    if kind in (int, float):
        # NumPy's numbers are registered with these classes, but are no subclasses of int.
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)


@cache
def _types(group: Any) -> Mapping[str, OptionType]:
    return {name: option_type(hint) for name, hint in get_type_hints(group).items()}
