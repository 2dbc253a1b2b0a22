"""Where the bytes are and from how many tasks on they are fewer; and how the updates are stored,
in all and as a map by task and layer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from sharespace.report.facts import Facts, FileBytes, TaskFacts
from sharespace.report.html import (
    Columns,
    Figure,
    Html,
    TableCell,
    details,
    figure,
    join,
    read,
    readout,
    scrolling,
    section,
    table,
    tag,
)
from sharespace.report.svg import (
    Axis,
    Heat,
    HeatValue,
    Scale,
    Series,
    chart,
    heat_map,
    legend,
    place,
)
from sharespace.subspace.fidelity import StorageKind, StorageTally, UpdateTally
from sharespace.words import count, human

_BAR, _START = 460, 76.0
"""Width of the bars with their names, and where they begin."""

_NAMES = ("all directions", "leading directions", "per task", "not kept")

_MEANT = (
    "coefficients for every direction of its subspace",
    "coefficients for the first directions of its subspace only; the others would be zero",
    "an SVD of its own, outside of any subspace",
    "no bytes: the budget did not reach so far, or the update is zero",
)

_STORAGE_NUMBERS: dict[StorageKind, int] = {"whole": 0, "leading": 1, "per_task": 2, "nothing": 3}

STORAGE_SCALE = Scale(
    (0.5, 1.5, 2.5),
    "w",
    lambda way: _NAMES[int(way)],
    lambda way: _NAMES[int(way)].replace(" ", "_"),
)
"""Colours and words for the four ways in which an update is stored, by the way's number."""

_COLUMN_NAMES = ("stored", "updates", "of all", "bytes", "bytes each")


def break_even(parts: FileBytes, tasks: int, budget: bool = False) -> int | None:
    """Smallest number of tasks like these for which the Share model is the smaller one; None:
    never. The bases stay as they are, all else grows with the tasks; under a byte budget the
    updates do not grow either."""
    if not tasks:
        return None
    fixed = _fixed(parts, budget)
    saved = (parts.adapters - (parts.total - fixed)) / tasks
    return max(1, math.floor(fixed / saved) + 1) if saved > 0 else None


def _fixed(parts: FileBytes, budget: bool) -> int:
    """Bytes that do not grow with the tasks."""
    return parts.basis + (parts.coefficients if budget else 0)


def sizes(facts: Facts) -> Html:
    """Bytes by part, and against the number of tasks."""
    if not facts.tasks:
        return section("sizes", "Sizes", read("There is nothing to compare without tasks."))
    return section(
        "sizes",
        "Sizes",
        read(
            "Every byte of this version's files. The adapters count with their tensors alone, so "
            "the comparison is not in favour of the Share model.",
        ),
        tag(
            "div",
            figure(_bar_legend(facts.file_bytes), _bars(facts.file_bytes)),
            _growth(facts),
            class_="charts",
        ),
        details(
            "Bytes by part",
            table(
                "Bytes by part",
                ("part", "bytes", "share", "what it is"),
                _rows(facts.file_bytes),
                False,
            ),
        ),
    )


def _parts_by_name(parts: FileBytes) -> list[tuple[str, int, str, str]]:
    """(name, bytes, what it is, colour); updates stored per task beside the coefficients."""
    rows = [
        ("bases", parts.basis, "the subspaces, common to all tasks"),
        ("coefficients", parts.coefficients - parts.per_task, "the tasks in the subspaces"),
        ("kept", parts.kept, "heads, biases and the like, as they came"),
        ("ledgers", parts.ledgers, "what each step cost, settings, headers of the files"),
        ("manifest", parts.manifest, "the list of all this"),
        ("per task", parts.per_task, "updates outside of the subspaces, each by its own SVD"),
    ]
    named = [(name, size, what, f"s{i}") for i, (name, size, what) in enumerate(rows)]
    if not parts.per_task:
        return named[:-1]
    return [*named[:2], named[-1], *named[2:-1]]


def _rows(parts: FileBytes) -> list[list[TableCell]]:
    rows: list[list[TableCell]] = [
        [name, Figure(human(size), size), _share(size, parts.total), what]
        for name, size, what, _ in _parts_by_name(parts)
    ]
    whole = Figure(human(parts.total), parts.total)
    rows.append(["this version", whole, _share(parts.total, parts.total), "sum of the above"])
    old = Figure(human(parts.history), parts.history)
    text = "files that only earlier versions need (sharespace prune removes them)"
    rows.append(["older versions", old, _share(parts.history, parts.total), text])
    lora = Figure(human(parts.adapters), parts.adapters)
    rows.append(["the adapters", lora, _share(parts.adapters, parts.total), "what it replaces"])
    return rows


def _share(size: int, total: int) -> Figure:
    return Figure(f"{size / total:.1%}", size / total)


def _bars(parts: FileBytes) -> Html:
    """Two bars on one scale: the adapters, and the Share model by part."""
    scale = (_BAR - _START - 2) / max(parts.total, parts.adapters, 1)
    drawn = [_label("adapters", 17), _label("Share", 53)]
    drawn.append(_part(_START, 2, parts.adapters * scale, "none", "adapters", parts.adapters))
    at = _START
    for name, size, _, style in _parts_by_name(parts):
        drawn.append(_part(at, 38, size * scale, style, name, size))
        at += size * scale
    title = f"Adapters {human(parts.adapters)}, Share model {human(parts.total)}."
    return tag(
        "svg",
        tag("title", title),
        drawn,
        viewBox=f"0 0 {_BAR} 64",
        role="img",
        class_="chart bars",
    )


def _label(text: str, y: float) -> Html:
    return tag("text", text, x=_START - 6, y=y, class_="end")


def _part(x: float, y: float, width: float, style: str, name: str, size: int) -> Html:
    title = tag("title", f"{name}: {human(size)}")
    return tag("rect", title, x=x, y=y, width=width, height=22, class_=f"bar {style}")


def _bar_legend(parts: FileBytes) -> Html:
    items = [
        tag("li", tag("span", class_=f"cell {s}"), " ", n) for n, _, _, s in _parts_by_name(parts)
    ]
    return tag("ul", items, class_="legend")


def _growth(facts: Facts) -> Html:
    """Bytes against the number of tasks, beyond those that are there."""
    parts, now = facts.file_bytes, len(facts.tasks)
    budget = facts.settings.budget is not None
    even, fixed = break_even(parts, now, budget), _fixed(parts, budget)
    far = max(2 * now, 4, math.ceil(1.3 * even) if even and even <= 30 * now else 0)
    share, lora = (parts.total - fixed) / now, parts.adapters / now
    measured = {len(v.bounds): v for v in facts.versions if v.bounds}
    series = [
        Series("adapters", [(0, 0), (far, far * lora)], style=1),
        Series(
            "Share model, within the budget" if budget else "Share model, bases as they are now",
            [(now, parts.total), (far, fixed + far * share)],
            style=0,
            dashed=True,
        ),
        Series(
            "Share model, versions as stored",
            [(n, v.bytes) for n, v in sorted(measured.items())],
            style=0,
            marks=True,
        ),
    ]
    x = Axis("tasks", far, lambda v: f"{v:,.0f}", whole=True)
    y = Axis("bytes", max(far * lora, fixed + far * share, parts.total), human)
    title = f"Bytes against the number of tasks, to {far} tasks."
    extra = _mark(even, x, y, fixed + (even or 0) * share) if even and even <= far else []
    return figure(
        [legend(series), tag("p", _told(even, now, budget))], chart(title, series, x, y, extra)
    )


def _mark(even: int, x: Axis, y: Axis, size: float) -> list[Html]:
    across, up = place(x, y, (even, size))
    bottom = place(x, y, (even, 0))[1]
    return [tag("line", x1=across, x2=across, y1=up, y2=bottom, class_="even")]


def _told(even: int | None, now: int, budget: bool) -> str:
    if even is None:
        return (
            "A task takes no fewer bytes here than as an adapter, so however many there are, the "
            "Share model is not the smaller one. A smaller k or p would change that."
        )
    when = "is" if even <= now else "would be"
    if budget:
        return (
            f"With all of its budget used the Share model {when} smaller from "
            f"{count(even, 'task')} like these on (the dotted line). It does not grow with more "
            "tasks, but for heads and ledgers; each of them is kept less well."
        )
    return (
        f"With bases as they are now the Share model {when} smaller from {count(even, 'task')} "
        "like these on (the dotted line). Where there is no cap, tasks that share nothing make "
        "the bases grow and move this number up."
    )


def tallies(stored: StorageTally) -> tuple[UpdateTally, UpdateTally, UpdateTally, UpdateTally]:
    """In the order of the names."""
    return stored.whole, stored.leading, stored.per_task, stored.nothing


def stored_kinds(stored: StorageTally) -> list[int]:
    """Numbers of the ways that there are."""
    return [way for way, tally in enumerate(tallies(stored)) if tally.updates]


def in_all(facts: Facts) -> list[Html]:
    """A sentence and, where there is more than one way, a table."""
    stored, budget = facts.stored, facts.settings.budget
    whose = "" if budget is None else f" A byte budget of {human(budget)} chose for each of them."
    total = count(stored.total.updates, "update")
    kinds = stored_kinds(stored)
    if not kinds:
        return [read("The tasks have no updates.")]
    if len(kinds) == 1:
        kind = kinds[0]
        text = f"{total}, stored in one way: {_NAMES[kind]} ({_MEANT[kind]}).{whose}"
        return [read(text, f" Beside the bases: {human(stored.total.nbytes)}.")]
    rows = [_row(kind, tallies(stored)[kind], stored.total) for kind in kinds]
    text = f"The {total} (one for each task and layer) are stored in {len(kinds)} ways.{whose}"
    return [
        read(text),
        table("Updates by the way they are stored", _COLUMN_NAMES, [*rows, _bases(facts)], False),
    ]


def _row(kind: int, tally: UpdateTally, total: UpdateTally) -> list[TableCell]:
    part, each = tally.updates / total.updates, tally.nbytes / tally.updates
    return [
        _said(_NAMES[kind], _MEANT[kind]),
        Figure(f"{tally.updates:,}", tally.updates),
        Figure(f"{part:.0%}", part),
        Figure(human(tally.nbytes), tally.nbytes),
        Figure(human(each), each),
    ]


def _said(name: str, meant: str) -> Html:
    return join([name, tag("small", meant)])


def _bases(facts: Facts) -> list[TableCell]:
    size, none = sum(layer.basis for layer in facts.layers), Figure("–", 0)
    what = "the directions themselves, stored once"
    return [_said("bases", what), none, none, Figure(human(size), size), none]


def storage_map(shown: Sequence[TaskFacts], across: Columns, cell: tuple[float, float]) -> Html:
    """How each update is stored, of these tasks; a column of several layers shows the most common
    way of them."""
    values = [[_most(task, modules) for modules in across.modules] for task in shown]
    title = f"How the updates of {count(len(shown), 'task')} are stored, layer by layer."
    heat = Heat(title, [t.name for t in shown], across.names, values, STORAGE_SCALE, across.groups)
    caption = [
        _legend({way for row in values for way in row}),
    ]
    name = "Map of how updates are stored by task and layer"
    return figure(
        caption,
        tag("h3", "How it is stored"),
        scrolling(name, heat_map(heat, cell)),
        readout(),
    )


def _most(task: TaskFacts, modules: Sequence[str]) -> HeatValue:
    known = Counter(task.storage_kinds[m] for m in modules if m in task.storage_kinds)
    return _STORAGE_NUMBERS[known.most_common(1)[0][0]] if known else None


def _legend(there: set[HeatValue]) -> Html:
    items = [
        tag("li", tag("span", class_=f"cell w{way}"), " ", name)
        for way, name in enumerate(_NAMES)
        if way in there
    ]
    return tag("ul", items, class_="legend")
