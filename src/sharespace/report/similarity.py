"""How the subspace settles, and how alike independently trained updates are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sharespace.report.style import (
    COLOURS,
    blank_cells,
    cell_size,
    grid_lines,
    look,
    name_ticks,
    tidy,
)


def draw_settling(
    axes: Any, angles: Mapping[str, Sequence[Sequence[float]]], steps: Sequence[str]
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


def draw_cka(axes: Any, names: Sequence[str], values: Sequence[Sequence[float | None]]) -> None:
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


def _write_similarity(axes: Any, j: int, i: int, value: float | None, names: int) -> None:
    if value is None:
        return
    ink, size = ("black" if value > 0.6 else "white"), cell_size(names)
    axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=size)


def _quantile(ascending: Sequence[float], q: float) -> float:
    """By linear interpolation."""
    at = q * (len(ascending) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (at - low) * (ascending[high] - ascending[low])
