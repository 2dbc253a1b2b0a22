"""How the updates are stored: in all, and as a map by task and layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sharespace.page.facts import Facts, TaskFacts
from sharespace.page.heat import HeatValue, Heat, Scale, heat_map
from sharespace.page.markup import Html, join, tag
from sharespace.page.sections.columns import Columns
from sharespace.page.sections.frame import figure, read, readout
from sharespace.page.table import TableCell
from sharespace.page.table import Figure, scrolling, table
from sharespace.page.words import count, human
from sharespace.subspace.stored import Stored, Tally, Way

_NAMES = ("all directions", "leading directions", "private", "not kept")
_MEANT = (
    "coefficients for every direction of its subspace",
    "coefficients for the first directions of its subspace only; the others would be zero",
    "an SVD of its own, outside of any subspace",
    "no bytes: the budget did not reach so far, or the update is zero",
)
_CODES: dict[Way, int] = {"whole": 0, "leading": 1, "private": 2, "nothing": 3}
WAYS = Scale(
    (0.5, 1.5, 2.5),
    "w",
    lambda way: _NAMES[int(way)],
    lambda way: _NAMES[int(way)].replace(" ", "_"),
)
"""Which of the four ways."""


def tallies(stored: Stored) -> tuple[Tally, Tally, Tally, Tally]:
    """In the order of the names."""
    return stored.whole, stored.leading, stored.private, stored.nothing


def ways_of(stored: Stored) -> list[int]:
    """Numbers of the ways that there are."""
    return [way for way, tally in enumerate(tallies(stored)) if tally.updates]


def in_all(facts: Facts) -> list[Html]:
    """A sentence and, where there is more than one way, a table."""
    stored, budget = facts.stored, facts.settings.budget
    whose = "" if budget is None else f" A byte budget of {human(budget)} chose for each of them."
    total = count(stored.total.updates, "update")
    ways = ways_of(stored)
    if not ways:
        return [read("The tasks have no updates.")]
    if len(ways) == 1:
        way = ways[0]
        text = f"{total}, stored in one way: {_NAMES[way]} ({_MEANT[way]}).{whose}"
        return [read(text, f" Beside the bases: {human(stored.total.nbytes)}.")]
    rows = [_row(way, tallies(stored)[way], stored.total) for way in ways]
    text = f"The {total} (one for each task and layer) are stored in {len(ways)} ways.{whose}"
    return [
        read(text),
        table("Updates by the way they are stored", _HEADS, [*rows, _bases(facts)], False),
    ]


_HEADS = ("stored", "updates", "of all", "bytes", "bytes each")


def _row(way: int, tally: Tally, total: Tally) -> list[TableCell]:
    part, each = tally.updates / total.updates, tally.nbytes / tally.updates
    return [
        _said(_NAMES[way], _MEANT[way]),
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


def way_map(shown: Sequence[TaskFacts], across: Columns, cell: tuple[float, float]) -> Html:
    """How each update is stored, of these tasks; a column of several layers shows the most common
    way of them."""
    values = [[_most(task, modules) for modules in across.modules] for task in shown]
    title = f"How the updates of {count(len(shown), 'task')} are stored, layer by layer."
    heat = Heat(title, [t.name for t in shown], across.names, values, WAYS, across.groups)
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
    known = Counter(task.ways[m] for m in modules if m in task.ways)
    return _CODES[known.most_common(1)[0][0]] if known else None


def _legend(there: set[HeatValue]) -> Html:
    items = [
        tag("li", tag("span", class_=f"cell w{way}"), " ", name)
        for way, name in enumerate(_NAMES)
        if way in there
    ]
    return tag("ul", items, class_="legend")
