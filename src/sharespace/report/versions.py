"""The history (what each version did, and what it cost the tasks), and the scores of a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from statistics import fmean, median

from sharespace.errors import OptionError
from sharespace.report.facts import Facts, VersionFacts
from sharespace.report.html import (
    Figure,
    Html,
    TableCell,
    figure,
    read,
    scrolling,
    section,
    some,
    table,
    tag,
)
from sharespace.report.svg import Axis, Scale, Series, chart, legend
from sharespace.stream.measures import (
    ScoreMatrix,
    acc,
    backward_transfer,
    forgetting,
    task_forgetting,
)
from sharespace.words import count, human, percent

MOST_LISTED = 100
"""Versions in the table, the newest."""

ROUNDING = 1e-4
"""Bound below which there is nothing to draw."""

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

MOST_STEPS = 60
"""Rows of the matrix, the last ones."""

CHANGES = Scale(
    (-0.1, -0.05, -0.02, -0.005, 0.005, 0.02, 0.05, 0.1),
    "d",
    lambda c: f"{100 * c:+g} %",
    lambda c: f"{100 * c:+.1f}%",
)
"""Change of a score since its task was learned, relative to the score then."""

_MEASURES: dict[str, Callable[[ScoreMatrix], float]] = {
    "accuracy": acc,
    "backward transfer": backward_transfer,
    "forgetting": forgetting,
}


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
    limit = (
        f" The newest {MOST_LISTED} of {len(rows)} are listed." if len(rows) > len(listed) else ""
    )
    if facts.contributions:
        limit += f" {count(facts.contributions, 'contribution')} of workers came in, each once."
    return section(
        "ledger",
        "Ledger",
        read(
            "The versions up to this one, newest first. The cost of a version is by how much it "
            "raised the bounds of the tasks that were there before; 0 means that they are as they "
            "were. The turn is the mean principal angle between its subspaces and those before: 0° "
            "where directions were only added.",
            limit,
        ),
        table("Versions", _HEADS, listed),
        _curve(facts),
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


def scores(facts: Facts) -> Html | str:
    """The matrix and its measures; nothing where no scores are stored."""
    if facts.scores is None:
        return ""
    matrix = facts.scores.matrix
    skipped = max(0, len(matrix.steps) - MOST_STEPS)
    limit = f" The last {MOST_STEPS} steps are shown." if skipped else ""
    measured = [
        tag("div", tag("dt", name), tag("dd", tag("b", _measured(matrix, of))))
        for name, of in _MEASURES.items()
    ]
    return section(
        "scores",
        "Scores of the stream",
        read(
            "Score of each task (columns) after each step (rows); higher is better, a loss is "
            "negative. The colour is the change since the task was learned: blue is better, orange "
            "is forgotten. Tasks are chosen by name, not guessed.",
            limit,
        ),
        tag("dl", measured, class_="tiles"),
        figure(
            CHANGES.legend(),
            scrolling("Scores by step and task", _table(facts, matrix, skipped)),
        ),
    )


def _measured(matrix: ScoreMatrix, measure: Callable[[ScoreMatrix], float]) -> str:
    try:
        return f"{measure(matrix):.2f}"
    except OptionError:
        return "not known: a score is missing"


def _table(facts: Facts, matrix: ScoreMatrix, skipped: int) -> Html:
    metrics = facts.scores.metrics if facts.scores else {}
    heads = [
        tag("th", name, tag("small", metrics.get(name) or ""), scope="col") for name in matrix.tasks
    ]
    rows = [
        tag("tr", tag("th", step, scope="row"), [_cell(matrix, t, i) for i in range(len(heads))])
        for t, step in enumerate(matrix.steps)
        if t >= skipped
    ]
    return tag(
        "table",
        tag("caption", "Scores by step and task"),
        tag("thead", tag("tr", tag("th", "after step", scope="col"), heads)),
        tag("tbody", rows),
        _foot(matrix),
        class_="matrix",
    )


def _cell(matrix: ScoreMatrix, step: int, task: int) -> Html:
    score, begun = matrix.scores[step][task], matrix.learned[task]
    if score is None:
        text = "" if begun is None or step < begun else "–"
        return tag("td", text)
    first = None if begun is None else matrix.scores[begun][task]
    if first is None:
        return tag("td", f"{score:.1f}")
    # A loss is negative, and a first score may be 0.
    change = (score - first) / (abs(first) or 1.0)
    return tag("td", f"{score:.1f}", class_=f"d{CHANGES.step(change)}")


def _foot(matrix: ScoreMatrix) -> Html | str:
    """What each task lost from its best."""
    try:
        lost = task_forgetting(matrix)
    except OptionError:
        return ""
    cells = [tag("td", f"{lost[n]:.1f}" if n in lost else "") for n in matrix.tasks]
    return tag("tfoot", tag("tr", tag("th", "forgetting", scope="row"), cells))
