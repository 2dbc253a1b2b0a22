"""Another size or rate than the settings', for tables of what was not chosen."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from sharespace.compare import ComparisonSettings

_CHANGES = ("k", "p", "phi", "rank", "lora", "core_rate")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What may be changed; ``--out`` says where such results go."""
    parser.add_argument("--k", type=int, help="another cap; default: room for all tasks")
    parser.add_argument("--p", type=int, help="another size of the cores")
    parser.add_argument("--phi", type=int, help="another number of new directions a task")
    parser.add_argument("--rank", type=int, help="another rank of own LoRAs")
    parser.add_argument("--lora", type=float, help="another learning rate of LoRA")
    parser.add_argument("--core-rate", type=float, help="another learning rate of the cores")


def is_varied(chosen: argparse.Namespace) -> bool:
    """True where anything was changed."""
    return any(getattr(chosen, name) is not None for name in _CHANGES)


def vary(
    settings: ComparisonSettings, chosen: argparse.Namespace, tasks: int
) -> ComparisonSettings:
    """The settings with what was changed; k has room for all tasks, unless it is given.

    Args:
        tasks: of the stream.
    """
    given = {n: getattr(chosen, n) for n in ("k", "p", "phi", "rank")}
    given = {name: value for name, value in given.items() if value is not None}
    method = {name: given.pop(name) for name in ("p", "phi") if name in given}
    found = replace(settings, method=replace(settings.method, **method), **given)
    if chosen.k is None:
        room = found.initial * settings.rank + max(tasks - found.initial, 0) * found.method.phi
        found = replace(found, k=room)
    lora, core = chosen.lora, chosen.core_rate
    if lora is not None:
        found = replace(found, lora=replace(found.lora, learning_rate=lora))
    if core is not None:
        found = replace(found, coefficients=replace(found.coefficients, learning_rate=core))
    return found


def own_folder(folder: Path, chosen: argparse.Namespace) -> Path:
    """Where own LoRAs are kept: those that are not the settings' apart from those that are."""
    changed = [f"{n}{getattr(chosen, n)}" for n in ("rank", "lora") if getattr(chosen, n)]
    return folder.with_name("-".join([folder.name, *changed]))
