"""The history: what each version did, and what it cost the tasks."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from statistics import fmean, median

from sharespace.page.chart import Axis, Series, chart, legend
from sharespace.page.facts import Facts, VersionFacts
from sharespace.page.markup import Html, tag
from sharespace.page.sections.frame import figure, read, section
from sharespace.page.table import TableCell, Figure, table
from sharespace.page.words import count, human, percent, some

MOST_LISTED = 100
"""Versions in the table, the newest."""
ROUNDING = 1e-4
"""Bound below which there is nothing to draw."""


def cost(before: VersionFacts, after: VersionFacts) -> dict[str, float]:
    """Task -> by how much a version raised the bound on its relative error; of tasks in both.

    Negative where a task was trained anew, which begins a new account.
    """
    return {
        task: after.bounds[task] - bound
        for task, bound in before.bounds.items()
        if task in after.bounds
    }


def ledger(facts: Facts) -> Html:
    """Versions, and the bounds along them."""
    costs = {b.number: cost(a, b) for a, b in pairwise(facts.versions)}
    rows = [_row(v, costs.get(v.number, {})) for v in reversed(facts.versions)]
    listed = rows[:MOST_LISTED]
    more = (
        f" The newest {MOST_LISTED} of {len(rows)} are listed." if len(rows) > len(listed) else ""
    )
    if facts.contributions:
        more += f" {count(facts.contributions, 'contribution')} of workers came in, each once."
    return section(
        "ledger",
        "Ledger",
        read(
            "The versions up to this one, newest first. The cost of a version is by how much it "
            "raised the bounds of the tasks that were there before; 0 means that they are as they "
            "were. The turn is the mean principal angle between its subspaces and those before: 0° "
            "where directions were only added.",
            more,
        ),
        table("Versions", _HEADS, listed),
        _curve(facts),
    )


_HEADS = (
    "version",
    "when",
    "what",
    "tasks",
    "size",
    "new bytes",
    "mean cost",
    "largest cost",
    "of task",
    "turn",
)


def _row(version: VersionFacts, costs: Mapping[str, float]) -> list[TableCell]:
    worst = max(costs, key=lambda name: costs[name], default="")
    largest = costs.get(worst, 0.0)
    mean = fmean(costs.values()) if costs else 0.0
    turn = version.turn
    return [
        str(version.number),
        version.created.replace("T", " ").replace("Z", ""),
        _told(version),
        Figure(str(len(version.bounds)), len(version.bounds)),
        Figure(human(version.bytes), version.bytes),
        Figure(human(version.new_bytes), version.new_bytes),
        Figure(percent(mean) if costs else "–", mean),
        Figure(percent(largest) if costs else "–", largest),
        worst if largest > 0 else "–",
        Figure("–" if turn is None else f"{turn:.1f}°", turn or 0.0),
    ]


def _told(version: VersionFacts) -> str:
    operation = version.operation
    if operation.version:
        return f"{operation.verb} to version {operation.version}"
    return f"{operation.verb} {some(operation.tasks)}"


def _curve(facts: Facts) -> Html | str:
    known = [v for v in facts.versions if v.bounds]
    if len(known) < 2:
        return ""
    bounds = {v.number: list(v.bounds.values()) for v in known}
    top = max(max(b) for b in bounds.values())
    if top <= ROUNDING:
        return tag("p", f"No version cost more than rounding: the largest bound is {percent(top)}.")
    series = [
        Series("largest bound", [(n, max(b)) for n, b in bounds.items()], style=1, marks=True),
        Series("median bound", [(n, median(b)) for n, b in bounds.items()], style=0, marks=True),
    ]
    x = Axis("version", known[-1].number, lambda v: f"{v:g}", known[0].number, whole=True)
    y = Axis("bound on the relative error", top * 1.05 or 1.0, percent)
    title = f"Bounds over versions; the largest is {percent(top)}."
    return figure(legend(series), chart(title, series, x, y))
