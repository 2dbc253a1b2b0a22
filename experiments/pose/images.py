"""The images of a category: rendered once, kept by what they were made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.pose import meshes, occlusion, render
from experiments.pose.render import Scene
from experiments.pose.views import Range, angles_of, draw_split

Array = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Images:
    """Views of one object."""

    pixels: Tensor
    """uint8 [views, 3, height, width]."""
    angles: Tensor
    """float32 [views, 3]: azimuth, elevation and theta in radians."""


@dataclass(frozen=True, eq=False)
class Category:
    """All images of a category."""

    name: str
    train: Images
    tests: Mapping[str, Images]
    """``"clean"`` and the levels of occlusion: the same views."""


def category(
    folder: Path, name: str, *, train: int, test: int, pixels: int, cache: Path, limits: Range
) -> Category:
    """Images of a category, from the cache where they are there.

    Args:
        folder: of the meshes.
        name: of the mesh.
        train, test: views.
        pixels: side of the images.
        cache: folder.
        limits: of the viewpoints.
    """
    split = draw_split(name, train, test, limits)
    mesh = meshes.load(folder, name)
    found = _rendered(mesh, split.train, pixels, cache)
    views = Images(_channels(found["images"]), angles_of(split.train).float())
    clean = _rendered(mesh, split.test, pixels, cache)
    angles = angles_of(split.test).float()
    tests = {"clean": Images(_channels(clean["images"]), angles)}
    for level, part in occlusion.LEVELS.items():
        tests[level] = Images(_channels(_occluded(clean, part, cache)), angles)
    return Category(name, views, tests)


def _occluded(clean: Mapping[str, Any], part: tuple[float, float], cache: Path) -> Array:
    """Patches of their own on every view."""
    digest = hashlib.sha256(repr((part, occlusion.VERSION)).encode())
    for found in clean.values():
        digest.update(np.ascontiguousarray(found).tobytes())
    pairs = zip(clean["images"], clean["masks"], strict=True)
    made = (occlusion.occlude(image, mask, part, i) for i, (image, mask) in enumerate(pairs))
    kept = _kept(cache, digest, lambda: {"images": np.stack([image for image, _ in made])})
    covered: Array = kept["images"]
    return covered


def _channels(images: Array) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _rendered(mesh: Any, scenes: Sequence[Scene], pixels: int, cache: Path) -> dict[str, Any]:
    """Images and masks of the object, by the mesh, the scenes, and how they are rendered."""
    digest = hashlib.sha256(repr((scenes, pixels, render.VERSION)).encode())
    for part in (mesh.vertices, mesh.faces):
        digest.update(np.ascontiguousarray(part).tobytes())

    def make() -> dict[str, Any]:
        made = [render.render(mesh, scene, pixels) for scene in scenes]
        images, masks = (np.stack(found) for found in zip(*made, strict=True))
        return {"images": images, "masks": masks}

    return _kept(cache, digest, make)


def _kept(cache: Path, digest: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Arrays from a file that is named by what they are made from; made where it is not there."""
    file = cache / "images" / f"{digest.hexdigest()[:24]}.npz"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part.npz")
        np.savez_compressed(unfinished, **make())
        unfinished.replace(file)
    with np.load(file) as found:
        return {name: found[name] for name in found.files}
