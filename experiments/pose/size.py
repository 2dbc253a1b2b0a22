"""How much of everything the experiment has."""

from __future__ import annotations

from dataclasses import dataclass, field

from experiments.pose.model import AngleBins
from experiments.pose.views import Range


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    train: int
    """Views of a category."""
    test: int
    pixels: int
    """Side of the images."""
    lower: int
    """Layers of the backbone that are frozen and computed once; each block has two."""
    cells: int
    """Side of the grid that the head sees; 1: the mean over the image."""
    steps: int
    batch_size: int
    head_steps: int = 400
    """Of the head alone, from which all methods start."""
    limits: Range = field(default_factory=Range)
    bins: AngleBins = field(default_factory=AngleBins)


FULL = Size(train=1200, test=250, pixels=96, lower=10, cells=1, steps=400, batch_size=32)
QUICK = Size(
    train=24,
    test=8,
    pixels=48,
    lower=22,
    cells=1,
    steps=5,
    batch_size=8,
    head_steps=10,
    limits=Range(apart=2.0),
)
"""For tests: nothing is learned. The first step warms up at rate 0, and after one or two more, the
LoRAs would span fewer directions than their ranks."""
