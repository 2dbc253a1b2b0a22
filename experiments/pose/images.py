"""The images of a category: rendered once, kept by what they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.harness.cached import Tensors, cached, digest
from experiments.pose import meshes, occlusion, render
from experiments.pose.render import Scene
from experiments.pose.size import Size
from experiments.pose.views import angles_of, draw_split


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


def category(folder: Path, name: str, size: Size, cache: Path) -> Category:
    """Images of a category, from the cache where they are there.

    Args:
        folder: of the meshes.
        name: of the mesh.
        size: how many views, how large, from where.
        cache: folder.
    """
    split = draw_split(name, size.train, size.test, size.limits)
    mesh = meshes.load(folder, name)
    train, test = (_rendered(mesh, s, size.pixels, cache) for s in (split.train, split.test))
    views = Images(_channels(train["images"]), angles_of(split.train).float())
    angles = angles_of(split.test).float()
    tests = {"clean": Images(_channels(test["images"]), angles)}
    for level, part in occlusion.LEVELS.items():
        tests[level] = Images(_channels(_occluded(test, part, cache)), angles)
    return Category(name, views, tests)


def _rendered(mesh: Any, scenes: Sequence[Scene], pixels: int, cache: Path) -> Tensors:
    """Images and masks of the object, by the mesh, the scenes, and how they are rendered."""

    def make() -> Tensors:
        pairs = [render.render(mesh, scene, pixels) for scene in scenes]
        images, masks = (torch.from_numpy(np.stack(parts)) for parts in zip(*pairs, strict=True))
        return {"images": images, "masks": masks}

    name = digest(scenes, pixels, render.VERSION, np.asarray(mesh.vertices), np.asarray(mesh.faces))
    return cached(cache / "images", name, make)


def _occluded(clean: Tensors, part: tuple[float, float], cache: Path) -> Tensor:
    """Patches of their own on every view."""

    def make() -> Tensors:
        pairs = zip(clean["images"].numpy(), clean["masks"].numpy(), strict=True)
        made = (occlusion.occlude(*pair, part, i)[0] for i, pair in enumerate(pairs))
        return {"images": torch.from_numpy(np.stack(list(made)))}

    name = digest(part, occlusion.VERSION, clean["images"], clean["masks"])
    return cached(cache / "images", name, make)["images"]


def _channels(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).contiguous()
