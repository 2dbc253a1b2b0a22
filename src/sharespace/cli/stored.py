"""How the updates of a Share model are stored, for ``info``: words, cells of a table, JSON."""

from __future__ import annotations

from collections.abc import Iterator

from sharespace.cli.words import count, human
from sharespace.store import Checkout
from sharespace.subspace.state import Task
from sharespace.subspace.stored import Stored, Storing, Tally, storing

_SAID = {
    "whole": "in all directions of their subspace",
    "leading": "in the leading ones only",
    "private": "private, outside of any",
    "nothing": "not kept",
}
_HEADS = {
    "whole": "all of k",
    "leading": "leading",
    "private": "private",
    "nothing": "not kept",
}


def storing_of(found: Checkout) -> Storing:
    """Count a version's updates; reads the coefficients of all tasks, one task at a time."""
    dimensions = {entry.module: entry for entry in found.manifest.content.layers}
    return storing(_tasks(found), dimensions)


def _tasks(found: Checkout) -> Iterator[Task]:
    """Every task; one that was read for this alone is not remembered."""
    tasks = found.model.tasks
    return map(getattr(tasks, "peek", tasks.__getitem__), tasks)


def record(found: Stored) -> dict[str, dict[str, int]]:
    """Way -> updates and bytes."""
    return {w: {"updates": t.updates, "bytes": t.nbytes} for w, t in _tallies(found)}


def sentence(found: Stored, budget: int | None) -> str:
    """All of it in plain words."""
    parts = [
        f"{t.updates:,} {_SAID[w]} ({human(t.nbytes)})" for w, t in _tallies(found) if t.updates
    ]
    why = "" if budget is None else f", as a budget of {human(budget)} chose"
    return f"{count(found.total.updates, 'update')}{why}: {', '.join(parts) or 'none'}"


def heads(every: Stored) -> list[str]:
    """Columns for ``cells``: the ways that the model has."""
    return [_HEADS[w] for w, t in _tallies(every) if t.updates]


def cells(found: Stored, every: Stored) -> list[str]:
    """Updates and bytes by way, of those ways that the model has."""
    there = [w for w, t in _tallies(every) if t.updates]
    return [_cell(getattr(found, w)) for w in there]


def _cell(tally: Tally) -> str:
    return f"{tally.updates:,} ({human(tally.nbytes)})" if tally.updates else "-"


def _tallies(found: Stored) -> list[tuple[str, Tally]]:
    return [(w, getattr(found, w)) for w in _SAID]
