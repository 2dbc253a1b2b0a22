"""Patches over the object, as much of it as a level of Occluded Pascal3D+ says."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from experiments.pose.render import background
from sharespace.errors import OptionError

LEVELS = {"L1": (0.2, 0.4), "L2": (0.4, 0.6), "L3": (0.6, 0.8)}
"""Part of the object's pixels that is covered: at least, and below."""
VERSION = 1
"""Of what patches look like; a change of it makes the caches' images anew."""
_TRIES = 100
_PATCHES = 40

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def occlude(image: Image, mask: Mask, level: tuple[float, float], seed: int) -> tuple[Image, Mask]:
    """An image with patches over the object.

    Args:
        image: uint8 [height, width, 3], square.
        mask: where the object is, bool [height, width].
        level: part of the object that is covered, at least and below.
        seed: of the patches.

    Returns:
        The image, and where the patches are.

    Raises:
        OptionError: the object is too small for patches to cover such a part of it.
    """
    generator = np.random.default_rng(seed)
    for _ in range(_TRIES):
        patches = _draw(mask, level, generator)
        if patches is not None:
            covered = image.copy()
            for patch in patches:
                covered[patch] = _texture(len(mask), generator)[patch]
            return covered, np.logical_or.reduce(patches)
    raise OptionError(
        f"occlusion of {level[0]:.0%} to {level[1]:.0%}",
        f"no patches cover such a part of an object of {int(mask.sum())} pixels",
        "Give larger images",
    )


def _draw(
    mask: Mask, level: tuple[float, float], generator: np.random.Generator
) -> list[Mask] | None:
    """Patches one after the other until enough is covered; None where it became too much."""
    patches: list[Mask] = []
    covered = np.zeros_like(mask)
    for _ in range(_PATCHES):
        patches.append(_patch(mask, generator))
        covered |= patches[-1]
        part = covered[mask].mean()
        if part >= level[0]:
            return patches if part < level[1] else None
    return None


def _patch(mask: Mask, generator: np.random.Generator) -> Mask:
    """A turned box or an ellipse about a pixel of the object."""
    rows, columns = np.nonzero(mask)
    centre = generator.integers(len(rows))
    size = math.sqrt(len(rows))
    height, width = generator.uniform(0.12, 0.4, size=2) * size
    angle = generator.uniform(0, math.pi)
    down, right = np.indices(mask.shape) - np.array([[[rows[centre]]], [[columns[centre]]]])
    x = (right * math.cos(angle) + down * math.sin(angle)) / width
    y = (down * math.cos(angle) - right * math.sin(angle)) / height
    box = generator.random() < 0.5
    inside: Mask = (np.maximum(abs(x), abs(y)) if box else np.hypot(x, y)) < 1
    return inside


def _texture(pixels: int, generator: np.random.Generator) -> Image:
    made = background(int(generator.integers(2**31)), pixels)
    texture: Image = (made * 255).round().astype(np.uint8)
    return texture
