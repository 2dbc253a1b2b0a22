"""What all figures have in common: colours, scales, frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

# Okabe and Ito's colours, which colour-blind readers can tell apart.
ADAPTERS, SHARE = "#D55E00", "#0072B2"
PALETTE = (SHARE, ADAPTERS, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333", "#999999")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
COLOURS = "viridis"
INK, PALE = "#333333", "#999999"


def look(index: int) -> tuple[str, str]:
    """(colour, mark) of the series of that number; the pair repeats only after 64."""
    return PALETTE[index % 8], MARKS[(index + index // 8) % 8]


def tidy(axes: Any, grid: str = "both") -> None:
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


def name_ticks(axes: Any, names: Sequence[str]) -> None:
    """Names below the x axis, slanted where they are crowded."""
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if crowded(names) else {}
    axes.set_xticks(range(len(names)), names, **turned)


def blank_cells(rows: Iterable[Sequence[float | None]]) -> list[list[float]]:
    """None as nan, which a heat map leaves blank."""
    return [[float("nan") if s is None else s for s in row] for row in rows]


def grid_lines(axes: Any, rows: int, columns: int) -> None:
    """White gaps between the cells of a heat map instead of a frame."""
    axes.set_xticks([i - 0.5 for i in range(1, columns)], minor=True)
    axes.set_yticks([t - 0.5 for t in range(1, rows)], minor=True)
    axes.grid(which="minor", color="white", linewidth=2 if columns <= 10 else 1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def cell_size(columns: int) -> float:
    """Font size of the numbers in a heat map, in points."""
    return 11 if columns <= 6 else 8.5 if columns <= 10 else 6.5
