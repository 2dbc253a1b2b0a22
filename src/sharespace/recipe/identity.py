"""Is this the recipe that a stream was started with?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from sharespace.errors import RecipeError
from sharespace.recipe.keys import keys_of
from sharespace.recipe.schema import Recipe, TaskSpec
from sharespace.recipe.settings import DataSettings, SubspaceSettings, TrainingSettings
from sharespace.recipe.source import Source

Record = Mapping[str, Any]


def record(recipe: Recipe) -> dict[str, Any]:
    """All that changes results, as JSON values: to be stored beside them.

    ``{"recipe": {key: value}, "tasks": [{key: value}]}``; paths as they are written.
    """
    return {"recipe": _values(recipe), "tasks": [_task(t) for t in recipe.tasks]}


def fingerprint(recipe: Recipe) -> str:
    """sha256 (hex) of the record."""
    text = json.dumps(record(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_other(recipe: Recipe, stored: Record, done: int | None = None) -> None:
    """Refuse to go on with a stream under a recipe that would have led elsewhere.

    Tasks may be appended at the end; a key that the record does not have (a later release's) must
    have its default.

    Args:
        recipe: as it is now.
        stored: ``record`` of the recipe that the stream was started with.
        done: only this many first tasks must be as they were; None: all of the record's.

    Raises:
        RecipeError: it differs; each key that does is named.
    """
    problems = list(_differences("", stored["recipe"], _values(recipe), _defaults(recipe)))
    before = list(stored["tasks"])[:done]
    if len(before) > len(recipe.tasks):
        gone = [t["name"] for t in before[len(recipe.tasks) :]]
        problems.append(f"tasks: {', '.join(map(repr, gone))} no longer there")
    for spec, then in zip(recipe.tasks, before, strict=False):
        where = f"task {then['name']!r}, "
        problems += _differences(where, then, _task(spec), _defaults(spec))
    if problems:
        raise RecipeError(
            str(recipe.file or "recipe"),
            tuple(problems),
            "The stream was started with another recipe: take that one and append tasks at its "
            "end, or start anew with another share",
        )


def _task(spec: TaskSpec) -> dict[str, Any]:
    parts = (spec, spec.settings, spec.subspace, spec.training)
    return {name: value for part in parts for name, value in _values(part).items()}


def _values(part: Any) -> dict[str, Any]:
    found = keys_of(type(part))
    return {name: _plain(getattr(part, name)) for name in found if not found[name].neutral}


def _plain(value: Any) -> Any:
    if isinstance(value, Source):
        return value.text
    return list(value) if isinstance(value, tuple) else value


def _defaults(part: Recipe | TaskSpec) -> dict[str, Any]:
    groups: list[type] = [type(part)]
    if isinstance(part, TaskSpec):
        groups += [DataSettings, SubspaceSettings, TrainingSettings]
    known = (k for group in groups for k in keys_of(group).values())
    return {k.name: _plain(k.default) for k in known if not k.needed}


def _differences(where: str, then: Record, now: Record, defaults: Record) -> Iterator[str]:
    for name in sorted({*then, *now}):
        before = then.get(name, defaults.get(name))
        after = now.get(name)
        if name not in now:
            yield f"{where}{name}: {_show(before)} then; this release has no such key"
        elif before != after:
            yield f"{where}{name}: {_show(before)} then, {_show(after)} now"


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
