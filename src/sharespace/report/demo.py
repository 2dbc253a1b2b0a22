"""The demo's picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sharespace.report.matrix import Rows, draw_matrix
from sharespace.report.picture import Panel, picture
from sharespace.report.sizes import SizePoint, draw_sizes


def demo_picture(
    path: Path,
    steps: Rows,
    references: Rows,
    tasks: Sequence[str],
    sizes: Sequence[SizePoint],
    assumption: str,
    titles: tuple[str, str, str],
) -> None:
    """Scores after every step and sizes side by side, as a PNG.

    Args:
        path: where to.
        steps, references, tasks: see ``draw_matrix``.
        sizes, assumption: see ``draw_sizes``.
        titles: of the picture, the matrix and the sizes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    matrix = partial(draw_matrix, steps=steps, references=references, tasks=tasks)
    curves = partial(draw_sizes, points=sizes, assumption=assumption)
    panels = [Panel(titles[1], matrix, width=1.4), Panel(titles[2], curves)]
    picture(path, titles[0], panels, height=5.2, width=13.5 / 2.4)
