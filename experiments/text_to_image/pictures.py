"""Grids of images with names on rows and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Image = Any
"""[height, width] or [height, width, 3], 0 to 1, as numpy has it."""


def grid(
    path: Path,
    title: str,
    columns: Sequence[str],
    rows: Mapping[str, Sequence[Image]],
    *,
    shape: tuple[float, float] = (1.5, 1.5),
) -> None:
    """Write a PNG with one image in each cell.

    Args:
        path: where to.
        title: above it all.
        columns: names above the first row.
        rows: name -> one image a column; a row may be shorter.
        shape: width and height of a cell, in inches.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (shape[0] * len(columns) + 1.9, shape[1] * len(rows) + 1.0)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for cell, image in zip(line, images, strict=False):
            cell.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for cell in line:
            cell.set_xticks([])
            cell.set_yticks([])
        for cell in line[len(images) :]:
            cell.set_frame_on(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    for cell, name in zip(axes[0], columns, strict=True):
        cell.set_title(name, fontsize=10)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path)
