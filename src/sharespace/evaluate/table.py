"""Comparisons and size claims as tables: markdown for files, rich for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from sharespace.evaluate.comparison import Comparison, Spread, Summary
from sharespace.evaluate.size import Claim, Reach

_AFTER_TASKS = (
    "mean",
    "forgetting",
    "BWT",
    "gain retained",
    "trained a task",
    "with head",
    "paper's count",
    "bytes on disk",
    "runs",
)
_NONE = "-"


def markdown(comparison: Comparison) -> str:
    """The table as markdown, and a line that says what it shows."""
    rows = [_cells(found) for found in comparison.summary()]
    return f"{_grid(_header(comparison), rows)}\n\n{caption(comparison)}\n"


def rich_table(comparison: Comparison) -> Table:
    """The same table for a terminal."""
    table = Table(caption=caption(comparison))
    for i, name in enumerate(_header(comparison)):
        table.add_column(escape(name), justify="right" if i else "left", overflow="fold")
    for found in comparison.summary():
        table.add_row(*(escape(cell) for cell in _cells(found)))
    return table


def caption(comparison: Comparison) -> str:
    """What the figures are, and over how many seeds and orders."""
    seeds, orders = len(comparison.seeds), len(comparison.orders)
    over = f"{seeds} {'seed' if seeds == 1 else 'seeds'}"
    if orders > 1:
        over += f" and {orders} orders of the tasks"
    text = "Scores after the last task; forgetting and BWT in points."
    if any(found.runs > 1 for found in comparison.summary()):
        text += f" Mean ± sample standard deviation over the runs ({over})."
    else:
        text += f" One run ({over})."
    return (
        f"{text} Trained: numbers per task, without and with the head. "
        "Paper's count: coefficients per task alone. Bytes: all tasks, heads included."
    )


def claims_markdown(claims: Sequence[Claim], reached: Sequence[tuple[Reach, Reach]] = ()) -> str:
    """Size claims counted both ways.

    Args:
        claims: a line each.
        reached: (paper's count, every byte) of some ratios, told below the table.
    """
    header = ["tasks", "LoRA", "paper's count", "times", "LoRA, all bytes", "all bytes", "times"]
    rows = [
        [
            f"{c.paper.tasks:,}",
            *(f"{c.paper.lora:,}", f"{c.paper.share:,}", f"{c.paper.ratio:.1f}"),
            *(f"{c.total.lora:,}", f"{c.total.share:,}", f"{c.total.ratio:.1f}"),
        ]
        for c in claims
    ]
    lines = [
        f"- {paper.ratio:g} times smaller: paper's count {_reached(paper)}; "
        f"every byte {_reached(total)}"
        for paper, total in reached
    ]
    return "\n".join([_grid(header, rows), "", "Sizes in bytes.", *lines, ""])


def _reached(found: Reach) -> str:
    if found.tasks is None:
        return f"never (limit {found.limit:.1f})"
    return f"from {found.tasks:,} {'task' if found.tasks == 1 else 'tasks'} on"


def _header(comparison: Comparison) -> list[str]:
    return ["method", *comparison.tasks, *_AFTER_TASKS]


def _cells(found: Summary) -> list[str]:
    """One line of the table."""
    return [
        found.method,
        *(_score(spread) for spread in found.scores.values()),
        _score(found.mean),
        _score(found.forgetting, 2),
        _score(found.backward_transfer, 2, sign="+"),
        _fraction(found.gain_retained),
        _number(found.trainable),
        _number(found.trainable_with_heads),
        _number(found.paper_count),
        _number(found.nbytes),
        str(found.runs),
    ]


def _score(found: Spread | None, digits: int = 1, sign: str = "") -> str:
    if found is None:
        return _NONE
    # Rounded before: no "-0.00".
    mean = f"{round(found.mean, digits) + 0.0:{sign}.{digits}f}"
    return mean if found.std is None else f"{mean} ± {found.std:.{digits}f}"


def _fraction(found: Spread | None) -> str:
    if found is None:
        return _NONE
    hundred = Spread(100 * found.mean, None if found.std is None else 100 * found.std)
    return f"{_score(hundred)} %"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}"


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, the first column to the left, the others to the right."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
