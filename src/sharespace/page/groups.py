"""Layers that do the same job at different depths belong together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def kind(module: str) -> str:
    """The module's name with numbers left open: ``encoder.layer.*.attention.self.query``."""
    return ".".join("*" if part.isdecimal() else part for part in module.split("."))


def by_kind(modules: Iterable[str]) -> dict[str, list[str]]:
    """Kind -> its modules, both in the order in which they come."""
    found: dict[str, list[str]] = {}
    for module in modules:
        found.setdefault(kind(module), []).append(module)
    return found


def labels(names: Sequence[str]) -> dict[str, str]:
    """Name -> what is left of it without the parts that all begin and end with.

    A single name keeps its last two parts.
    """
    split = [name.split(".") for name in names]
    if len(names) == 1:
        return {names[0]: ".".join(split[0][-2:])}
    shortest = min(map(len, split), default=0)
    head = _common(split, shortest - 1)
    tail = _common([parts[head:][::-1] for parts in split], shortest - head - 1)
    return {
        name: ".".join(parts[head : len(parts) - tail])
        for name, parts in zip(names, split, strict=True)
    }


def _common(split: Sequence[Sequence[str]], most: int) -> int:
    """How many first parts are the same in all."""
    same = 0
    while same < most and len({parts[same] for parts in split}) == 1:
        same += 1
    return same
