"""Figures of a comparison, and panels of them side by side as a PNG.

R matrices as heat maps, scores step by step, what was forgotten of each task, how the subspace
settles, and how alike independently trained updates are. Each ``draw_...`` function draws one
figure on axes of matplotlib; ``picture`` puts several on a page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Literal

from sharespace.errors import OptionError
from sharespace.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can tell apart.
ADAPTERS, SHARE = "#D55E00", "#0072B2"

PALETTE = (SHARE, ADAPTERS, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333", "#999999")

MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")

COLOURS = "viridis"

INK, PALE = "#333333", "#999999"

ScoreRows = Mapping[str, Sequence[float | None]]
"""Name of a row -> a score in percent for each column; None for a task that has not come yet."""

Runs = Sequence[Sequence[float | None]]
"""A row for each run (seed), a value for each step; None where there is none yet."""


@dataclass(frozen=True)
class Panel:
    """One figure of a picture."""

    title: str
    draw: Callable[[Axes], None]
    """Draws on axes of matplotlib; ``functools.partial`` of a ``draw_...`` function."""
    width: float = 1.0
    """Relative to the others in its row."""


def picture(
    path: Path,
    title: str,
    panels: Sequence[Panel],
    *,
    columns: int = 3,
    height: float = 5.0,
    width: float = 6.0,
) -> None:
    """Draw panels row by row and write them as a PNG.

    Args:
        path: where to.
        title: above all of it; may be empty.
        panels: at least one; the widths of the first row hold for all.
        columns: panels in a row at most.
        height: of a row, in inches.
        width: of a panel of width 1, in inches.

    Raises:
        OptionError: there is no panel.
        MissingExtraError: matplotlib is not installed.
    """
    if not panels:
        raise OptionError("picture", "no panels", "Give at least one")
    figures = require("matplotlib.figure", "report")
    across = min(columns, len(panels))
    rows = math.ceil(len(panels) / across)
    widths = [panel.width for panel in panels[:across]]
    # A Figure of its own, not pyplot: no window, no backend and no global state.
    size = (width * sum(widths), height * rows)
    figure = figures.Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(rows, across, width_ratios=widths, squeeze=False).flatten()
    for panel, axes in zip(panels, grid, strict=False):
        panel.draw(axes)
        axes.set_title(panel.title, fontsize=11, color=INK, loc="left")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=14, color=INK)
    figure.savefig(path)


def look(index: int) -> tuple[str, str]:
    """(colour, mark) of the series of that number; the pair repeats only after 64."""
    return PALETTE[index % 8], MARKS[(index + index // 8) % 8]


def tidy(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """A light grid behind the data, no frame at the top and to the right.

    Args:
        axes: of matplotlib.
        grid: ``"both"``, ``"x"`` or ``"y"``.
    """
    axes.grid(axis=grid, color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def crowded(names: Sequence[str]) -> bool:
    """True where names side by side would run into each other below an axis."""
    return len(names) * max((len(n) for n in names), default=0) > 44


def name_ticks(axes: Axes, names: Sequence[str]) -> None:
    """Names below the x axis, slanted where they are crowded."""
    axes.set_xticks(range(len(names)), names)
    if crowded(names):
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")


def blank_cells(rows: Iterable[Sequence[float | None]]) -> list[list[float]]:
    """None as nan, which a heat map leaves blank."""
    return [[float("nan") if s is None else s for s in row] for row in rows]


def grid_lines(axes: Axes, rows: int, columns: int) -> None:
    """White gaps between the cells of a heat map instead of a frame."""
    axes.set_xticks([i - 0.5 for i in range(1, columns)], minor=True)
    axes.set_yticks([t - 0.5 for t in range(1, rows)], minor=True)
    axes.grid(which="minor", color="white", linewidth=2 if columns <= 10 else 1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def cell_size(columns: int) -> float:
    """Font size of the numbers in a heat map, in points."""
    return 11 if columns <= 6 else 8.5 if columns <= 10 else 6.5


def draw_matrix(
    axes: Axes,
    steps: ScoreRows,
    references: ScoreRows,
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


def matrix_panels(methods: Mapping[str, ScoreRows], tasks: Sequence[str]) -> list[Panel]:
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


def lowest(*matrices: ScoreRows) -> float:
    """A round number below all scores: they lie close together, and drops are to show."""
    known = [s for steps in matrices for row in steps.values() for s in row if s is not None]
    return max(0.0, 10 * (min(known) // 10))


def _write_score(axes: Axes, i: int, t: int, score: float | None, low: float, tasks: int) -> None:
    if score is None:
        text = "not yet\nlearned" if tasks <= 6 else ""
        axes.text(i, t, text, ha="center", va="center", color=PALE, fontsize=8)
        return
    ink = "black" if score - low > 0.6 * (100 - low) else "white"
    axes.text(i, t, f"{score:.1f}", ha="center", va="center", color=ink, fontsize=cell_size(tasks))


def draw_steps(
    axes: Axes,
    methods: Mapping[str, Runs],
    steps: Sequence[str],
    levels: Mapping[str, float] | None = None,
    *,
    label: str = "mean score over the tasks so far",
) -> None:
    """Mean over the tasks seen so far, step by step; a band of one standard deviation.

    Args:
        axes: of matplotlib.
        methods: method -> runs x steps.
        steps: names of the steps.
        levels: what to compare the end with -> its score, as a line.
        label: of the y axis.
    """
    for i, (name, runs) in enumerate(methods.items()):
        colour, mark = look(i)
        at, means, spreads = _over_runs(runs)
        axes.plot(at, means, color=colour, marker=mark, label=f"{name}{_count(runs)}")
        if any(spreads):
            low = [m - s for m, s in zip(means, spreads, strict=True)]
            high = [m + s for m, s in zip(means, spreads, strict=True)]
            axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    for i, (name, level) in enumerate((levels or {}).items()):
        style = ("--", ":", "-.")[i % 3]
        axes.axhline(level, color=PALE, linestyle=style, label=f"{name}, end: {level:.1f}")
    name_ticks(axes, steps)
    axes.set_ylabel(label)
    tidy(axes)
    _legend_below(axes, len(methods) + len(levels or {}), steps)


def draw_forgetting(
    axes: Axes, methods: Mapping[str, Mapping[str, Sequence[float]]], *, label: str = "points"
) -> None:
    """What was forgotten of each task, a group of bars a task; below 0: the task got better.

    Args:
        axes: of matplotlib.
        methods: method -> task -> a value a run.
        label: unit of the y axis.
    """
    tasks = list(dict.fromkeys(task for by_task in methods.values() for task in by_task))
    wide = 0.8 / len(methods)
    for i, (name, by_task) in enumerate(methods.items()):
        known = [t for t in tasks if t in by_task]
        at = [tasks.index(t) + (i - (len(methods) - 1) / 2) * wide for t in known]
        spreads = [_spread(by_task[t]) for t in known]
        # A colour comes again, hatched, where there are more methods than colours.
        hatch = "///" if i >= len(PALETTE) else ""
        axes.bar(
            at,
            [fmean(by_task[t]) for t in known],
            0.92 * wide,
            color=look(i)[0],
            label=name,
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
            yerr=spreads if any(spreads) else None,
            error_kw={"elinewidth": 1},
        )
    axes.axhline(0, color=INK, linewidth=0.8)
    name_ticks(axes, tasks)
    axes.set_ylabel(f"forgetting ({label})")
    tidy(axes, "y")
    axes.tick_params(axis="x", length=0)
    _legend_below(axes, len(methods), tasks)


def _over_runs(runs: Runs) -> tuple[list[int], list[float], list[float]]:
    """Steps with a value in every run, their means and standard deviations."""
    at, means, spreads = [], [], []
    for t, column in enumerate(zip(*runs, strict=True)):
        values = [value for value in column if value is not None]
        if len(values) == len(column):
            at.append(t)
            means.append(fmean(values))
            spreads.append(_spread(values))
    return at, means, spreads


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _count(runs: Runs) -> str:
    return f" ({len(runs)} seeds)" if len(runs) > 1 else ""


def _legend_below(axes: Axes, entries: int, names: Sequence[str]) -> None:
    """Below the names of the x axis, where it hides no data.

    Args:
        axes: of matplotlib.
        entries: of the legend.
        names: below the x axis.
    """
    # Slanted names reach further down the longer they are.
    room = 0.1 + 0.015 * max(map(len, names)) if crowded(names) else 0.1
    # Levels have long names: three in a row would be cut off.
    anchor, columns = (0.5, -room), 3 if entries > 3 else 2
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=anchor, ncols=columns, fontsize=9)


def draw_settling(
    axes: Axes, angles: Mapping[str, Sequence[Sequence[float]]], steps: Sequence[str]
) -> None:
    """Principal angles between successive bases: median, middle 80 % as a band, largest dotted.

    Args:
        axes: of matplotlib.
        angles: name (for example ``"left bases"``) -> for each step the angles of all modules, in
            radians; a step may have none.
        steps: names of the steps, each against the one before.
    """
    for i, (name, by_step) in enumerate(angles.items()):
        colour, mark = look(i)
        known = [(t, sorted(map(math.degrees, a))) for t, a in enumerate(by_step) if len(a)]
        at = [t for t, _ in known]
        axes.plot(
            at,
            [_quantile(a, 0.5) for _, a in known],
            color=colour,
            marker=mark,
            label=f"{name}, median",
        )
        low, high = ([_quantile(a, q) for _, a in known] for q in (0.1, 0.9))
        axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(
            at, [a[-1] for _, a in known], color=colour, linestyle=":", label=f"{name}, largest"
        )
    name_ticks(axes, steps)
    largest = max(
        (math.degrees(max(a)) for rows in angles.values() for a in rows if len(a)), default=0
    )
    top = next(limit for limit in (1, 6, 15, 30, 60, 91) if largest < limit)
    axes.set_ylim(0, top)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}°")
    axes.set_ylabel("principal angle to the basis before")
    tidy(axes)
    axes.legend(frameon=False, loc="best", fontsize=9)


def draw_cka(axes: Axes, names: Sequence[str], values: Sequence[Sequence[float | None]]) -> None:
    """Linear CKA of every pair as an annotated heat map from 0 to 1; blank where there is none.

    Args:
        axes: of matplotlib.
        names: of the adapters.
        values: symmetric.
    """
    image = axes.imshow(blank_cells(values), cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    if len(names) <= 16:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                _write_similarity(axes, j, i, value, len(names))
    name_ticks(axes, names)
    axes.set_yticks(range(len(names)), names)
    grid_lines(axes, len(names), len(names))
    axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)


def _write_similarity(axes: Axes, j: int, i: int, value: float | None, names: int) -> None:
    if value is None:
        return
    ink, size = ("black" if value > 0.6 else "white"), cell_size(names)
    axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=size)


def _quantile(ascending: Sequence[float], q: float) -> float:
    """The q-quantile of ascending values, by linear interpolation."""
    at = q * (len(ascending) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (at - low) * (ascending[high] - ascending[low])
