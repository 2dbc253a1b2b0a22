"""Figures: scores after every step as a heat map, and bytes against the number of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharespace.extras import require

# Okabe and Ito's colours, which colour-blind readers can tell apart.
ADAPTERS, SHARE = "#D55E00", "#0072B2"
COLOURS = "viridis"
INK = "#333333"


@dataclass(frozen=True)
class SizePoint:
    """Bytes of a number of tasks, both ways."""

    tasks: int
    adapters: int
    share: int
    measured: bool
    """False: extrapolated."""


Rows = Mapping[str, Sequence[float | None]]
"""Row's name -> a score in percent per column; None for a task that has not come yet."""


def draw_matrix(axes: Any, steps: Rows, references: Rows, tasks: Sequence[str]) -> None:
    """R[t][i] as an annotated heat map: a row a step, a column a task, blank before a task came.

    Args:
        axes: of matplotlib.
        steps: the rows of R, in order.
        references: further rows to compare with, below a line.
        tasks: names of the columns.
    """
    known = [s for row in steps.values() for s in row if s is not None]
    # Accuracies lie close together: from a round number below the lowest, so that drops show.
    low = max(0.0, 10 * (min(known) // 10))
    rows = {**steps, **references}
    grid = [[float("nan") if s is None else s for s in row] for row in rows.values()]
    image = axes.imshow(grid, cmap=COLOURS, vmin=low, vmax=100, aspect="auto")
    for t, row in enumerate(rows.values()):
        for i, score in enumerate(row):
            _write_cell(axes, i, t, score, low)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_yticks(range(len(rows)), rows)
    _grid_lines(axes, len(rows), len(tasks))
    axes.axhline(len(steps) - 0.5, color="white", linewidth=10)
    axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, extend="min")


def _write_cell(axes: Any, i: int, t: int, score: float | None, low: float) -> None:
    if score is None:
        axes.text(i, t, "not yet\nlearned", ha="center", va="center", color="#999999", fontsize=8)
        return
    ink = "black" if score - low > 0.6 * (100 - low) else "white"
    axes.text(i, t, f"{score:.1f}", ha="center", va="center", color=ink, fontsize=11)


def _grid_lines(axes: Any, rows: int, columns: int) -> None:
    """White gaps between the cells instead of a frame."""
    axes.set_xticks([i - 0.5 for i in range(1, columns)], minor=True)
    axes.set_yticks([t - 0.5 for t in range(1, rows)], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def draw_sizes(axes: Any, points: Sequence[SizePoint], assumption: str) -> None:
    """Kilobytes against the number of tasks; measured with marks, extrapolated dashed.

    Args:
        axes: of matplotlib.
        points: by number of tasks, the extrapolated ones last.
        assumption: of the extrapolation.
    """
    _curve(axes, points, [p.adapters for p in points], ADAPTERS, "own LoRA adapters", "s")
    _curve(axes, points, [p.share for p in points], SHARE, "one Share model", "o")
    last = points[-1]
    ratio = last.adapters / last.share
    axes.annotate(
        f"{ratio:.1f} times smaller at {last.tasks} tasks",
        (last.tasks, last.share / 1000),
        xytext=(0, 12),
        textcoords="offset points",
        ha="right",
        color=SHARE,
    )
    axes.plot([], [], color=INK, linestyle="--", label=f"extrapolated: {assumption}")
    axes.set_xlabel("number of tasks")
    axes.set_ylabel("size (kB)")
    axes.set_xlim(0, last.tasks * 1.03)
    axes.set_ylim(0, None)
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", fontsize=9)


def _curve(
    axes: Any, points: Sequence[SizePoint], sizes: Sequence[int], colour: str, label: str, mark: str
) -> None:
    measured = [(p.tasks, b / 1000) for p, b in zip(points, sizes, strict=True) if p.measured]
    rest = [(p.tasks, b / 1000) for p, b in zip(points, sizes, strict=True) if not p.measured]
    axes.plot(*zip(*measured, strict=True), color=colour, marker=mark, label=f"{label}, measured")
    if rest:
        axes.plot(*zip(measured[-1], *rest, strict=True), color=colour, linestyle="--")


def demo_picture(
    path: Path,
    steps: Rows,
    references: Rows,
    tasks: Sequence[str],
    sizes: Sequence[SizePoint],
    assumption: str,
    titles: tuple[str, str, str],
) -> None:
    """Both figures side by side, as a PNG.

    Args:
        path: where to.
        steps, references, tasks: see ``draw_matrix``.
        sizes, assumption: see ``draw_sizes``.
        titles: of the picture, the matrix and the sizes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figures = require("matplotlib.figure", "report")
    # A Figure of its own, not pyplot: no window, no backend and no global state.
    figure = figures.Figure(figsize=(13.5, 5.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    draw_matrix(left, steps, references, tasks)
    draw_sizes(right, sizes, assumption)
    figure.suptitle(titles[0], fontsize=14, color=INK)
    left.set_title(titles[1], fontsize=11, color=INK, loc="left")
    right.set_title(titles[2], fontsize=11, color=INK, loc="left")
    figure.savefig(path)
