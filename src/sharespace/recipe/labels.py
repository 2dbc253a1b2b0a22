"""Labels of a classification task: names, and a number for every value met."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sharespace.recipe.refusal import refuse
from sharespace.recipe.rows import Rows
from sharespace.recipe.rules import MOST_LABELS
from sharespace.recipe.schema import TaskSpec


def label_names(spec: TaskSpec, rows: Rows) -> tuple[str, ...]:
    """Names of the classes in order: the recipe's, the data's own, ``labels.txt``, or the sorted
    values of the train split.

    Raises:
        RecipeError: there is no column of labels, or fewer than two classes.
    """
    names = spec.labels or _own_names(spec, rows) or rows.label_file or _met(spec, rows)
    if len(set(names)) != len(names):
        refuse(spec, "labels", "a name is there twice")
    if not 2 <= len(names) <= MOST_LABELS:
        shown = ", ".join(names[:3]) or "none"
        refuse(spec, "label", f"{len(names)} classes ({shown}); at least 2 are needed")
    return names


def numbers(spec: TaskSpec, names: Sequence[str], values: Iterable[Any], split: str) -> list[int]:
    """Number of each row's class, from 0.

    A text is a class's name; a number is its place, unless the names are numbers themselves.

    Raises:
        RecipeError: a row has no label, or one that is no class.
    """
    known = {name: i for i, name in enumerate(names)}
    found: dict[Any, int] = {}
    result = []
    for row, value in enumerate(values):
        at = found.get(_key(value))
        if at is None:
            at = found[_key(value)] = _number(spec, known, value, f"{split} row {row + 1}")
        result.append(at)
    return result


def _key(value: Any) -> tuple[type, str]:
    """True is not 1, and what cannot be hashed has a text."""
    return type(value), str(value)


def _number(spec: TaskSpec, known: Mapping[str, int], value: Any, where: str) -> int:
    name, place = _name(value), _place(value)
    if name is None:
        refuse(spec, "label", f"{where} has no label")
    at = known.get(name, None if _numeric(known) else place)
    if at is None or not 0 <= at < len(known):
        few = ", ".join(list(known)[:5]) + (", ..." if len(known) > 5 else "")
        tail = "; -1 often marks a split without labels: choose another" if place == -1 else ""
        refuse(spec, "label", f"{where} has {_brief(value)}, no class of {few}{tail}")
    return at


def _place(value: Any) -> int | None:
    """A whole number, whatever type it came in."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return int(value) if whole else None


def _numeric(names: Iterable[str]) -> bool:
    return all(n.removeprefix("-").isdecimal() for n in names)


def _name(value: Any) -> str | None:
    """``1.0`` is ``1``: columns of numbers with gaps come as floats."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _own_names(spec: TaskSpec, rows: Rows) -> tuple[str, ...] | None:
    """Of a column of the type ``ClassLabel``."""
    part = rows.train if rows.train is not None else rows.eval
    feature = part.features.get(spec.settings.label)
    names = getattr(feature, "names", None)
    return tuple(names) if names else None


def _met(spec: TaskSpec, rows: Rows) -> tuple[str, ...]:
    """Values of the train split, sorted: numbers by size, else by alphabet."""
    if rows.train is None:
        refuse(spec, "labels", "needed: nothing is learned that would tell the classes")
    met = {_name(value) for value in rows.train[spec.settings.label]} - {None}
    names = [name for name in met if name is not None]
    if len(names) > 1 and _numeric(names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
