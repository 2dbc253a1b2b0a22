"""Panels side by side as a PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharespace.errors import OptionError
from sharespace.extras import require
from sharespace.report.style import INK


@dataclass(frozen=True)
class Panel:
    """One figure of a picture."""

    title: str
    draw: Callable[[Any], None]
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
