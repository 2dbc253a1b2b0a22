"""The R matrix of a stream, where its scores are stored."""

from __future__ import annotations

from collections.abc import Callable

from sharespace.errors import OptionError
from sharespace.evaluate import ScoreMatrix
from sharespace.evaluate.measures import acc, backward_transfer, forgetting, task_forgetting
from sharespace.page.facts import Facts
from sharespace.page.heat import Scale
from sharespace.page.markup import Html, tag
from sharespace.page.sections.frame import figure, read, section
from sharespace.page.table import scrolling

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
