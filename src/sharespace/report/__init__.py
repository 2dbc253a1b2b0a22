"""Pictures of what was measured; needs the extra ``report``."""

from sharespace.report.figures import SizePoint, demo_picture, draw_matrix, draw_sizes

__all__ = ["SizePoint", "demo_picture", "draw_matrix", "draw_sizes"]
