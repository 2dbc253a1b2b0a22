"""Which views of an object are trained on and which are tested: never close to one another."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experiments.pose.render import Scene, draw_scene
from experiments.pose.rotations import geodesic, rotation
from sharespace.errors import OptionError

_TRIES = 200
"""For each view."""


@dataclass(frozen=True)
class Range:
    """Viewpoints that occur, in degrees; the azimuth is anything."""

    elevation: tuple[float, float] = (-10.0, 60.0)
    theta: tuple[float, float] = (-30.0, 30.0)
    apart: float = 5.0
    """Of every test view from every training view of its category, at least."""


@dataclass(frozen=True)
class Split:
    """The scenes of one category."""

    train: tuple[Scene, ...]
    test: tuple[Scene, ...]


def draw_split(category: str, train: int, test: int, limits: Range, seed: int = 0) -> Split:
    """Random scenes; all that is varied but the viewpoint is drawn anew for each.

    Args:
        category: makes the scenes its own, with the seed.
        train, test: how many.
        limits: of the viewpoints.

    Raises:
        OptionError: so many test views so far from the training views do not fit.
    """
    generator = np.random.default_rng([zlib.crc32(category.encode()), seed])
    trained = [draw_scene(_viewpoint(limits, generator), generator) for _ in range(train)]
    known = rotation(angles_of(trained))
    tested: list[Scene] = []
    for _ in range(test):
        tested.append(_far_scene(known, limits, generator))
    return Split(tuple(trained), tuple(tested))


def _far_scene(known: Tensor, limits: Range, generator: np.random.Generator) -> Scene:
    for _ in range(_TRIES):
        angles = _viewpoint(limits, generator)
        turn = rotation(torch.tensor(angles, dtype=torch.float64))
        if float(geodesic(known, turn).min()) >= math.radians(limits.apart):
            return draw_scene(angles, generator)
    raise OptionError(
        f"apart={limits.apart} degrees",
        f"no view is so far from {len(known)} training views",
        "Take fewer, or a smaller angle",
    )


def _viewpoint(limits: Range, generator: np.random.Generator) -> tuple[float, float, float]:
    """Azimuth, elevation and theta in radians, evenly."""
    bounds = ((0.0, 360.0), limits.elevation, limits.theta)
    azimuth, elevation, theta = (math.radians(generator.uniform(*b)) for b in bounds)
    return azimuth, elevation, theta


def angles_of(scenes: list[Scene] | tuple[Scene, ...]) -> Tensor:
    """float64 [scenes, 3]."""
    return torch.tensor([(s.azimuth, s.elevation, s.theta) for s in scenes], dtype=torch.float64)
