"""Pictures of what was measured; needs the extra ``report``."""

from sharespace.report.demo import demo_picture
from sharespace.report.matrix import draw_matrix, matrix_panels
from sharespace.report.picture import Panel, picture
from sharespace.report.similarity import draw_cka, draw_settling
from sharespace.report.sizes import CountedPoint, SizePoint, draw_counts, draw_sizes
from sharespace.report.stream import draw_forgetting, draw_steps

__all__ = [
    "CountedPoint",
    "Panel",
    "SizePoint",
    "demo_picture",
    "draw_cka",
    "draw_counts",
    "draw_forgetting",
    "draw_matrix",
    "draw_settling",
    "draw_sizes",
    "draw_steps",
    "matrix_panels",
    "picture",
]
