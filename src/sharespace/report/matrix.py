"""R matrices as heat maps: a row a step, a column a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sharespace.report.picture import Panel
from sharespace.report.style import (
    COLOURS,
    PALE,
    blank_cells,
    cell_size,
    grid_lines,
    name_ticks,
)

Rows = Mapping[str, Sequence[float | None]]
"""Row's name -> a score in percent per column; None for a task that has not come yet."""


def draw_matrix(
    axes: Any,
    steps: Rows,
    references: Rows,
    tasks: Sequence[str],
    *,
    low: float | None = None,
    colour_bar: bool = True,
) -> None:
    """R[t][i] as an annotated heat map: a row a step, a column a task, blank before a task came.

    Args:
        axes: of matplotlib.
        steps: the rows of R, in order.
        references: further rows to compare with, below a line.
        tasks: names of the columns.
        low: score of the darkest colour; None: chosen from the steps.
        colour_bar: beside the map.
    """
    dark = lowest(steps) if low is None else low
    rows = {**steps, **references}
    image = axes.imshow(
        blank_cells(rows.values()), cmap=COLOURS, vmin=dark, vmax=100, aspect="auto"
    )
    for t, row in enumerate(rows.values()):
        for i, score in enumerate(row):
            _write_score(axes, i, t, score, dark, len(tasks))
    name_ticks(axes, tasks)
    axes.set_yticks(range(len(rows)), rows)
    grid_lines(axes, len(rows), len(tasks))
    if references:
        axes.axhline(len(steps) - 0.5, color="white", linewidth=10)
    if colour_bar:
        axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, extend="min")


def matrix_panels(methods: Mapping[str, Rows], tasks: Sequence[str]) -> list[Panel]:
    """One heat map a method, all on one scale, the colour bar beside the last.

    Args:
        methods: method -> the rows of its R.
        tasks: names of the columns.
    """
    dark, last = lowest(*methods.values()), list(methods)[-1]
    return [
        Panel(
            name,
            partial(
                draw_matrix,
                steps=steps,
                references={},
                tasks=tasks,
                low=dark,
                colour_bar=name == last,
            ),
        )
        for name, steps in methods.items()
    ]


def lowest(*matrices: Rows) -> float:
    """A round number below all scores: they lie close together, and drops are to show."""
    known = [s for steps in matrices for row in steps.values() for s in row if s is not None]
    return max(0.0, 10 * (min(known) // 10))


def _write_score(axes: Any, i: int, t: int, score: float | None, low: float, tasks: int) -> None:
    if score is None:
        text = "not yet\nlearned" if tasks <= 6 else ""
        axes.text(i, t, text, ha="center", va="center", color=PALE, fontsize=8)
        return
    ink = "black" if score - low > 0.6 * (100 - low) else "white"
    axes.text(i, t, f"{score:.1f}", ha="center", va="center", color=ink, fontsize=cell_size(tasks))
