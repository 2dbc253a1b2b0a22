"""Tiny stand-ins for Pascal3D+, OccludedPASCAL3D+ and a ViT: the same folders, files and fields.

    python -m experiments standins pose FOLDER

The annotations are MATLAB files with a ``record``, the images grey squares on noise, the ViT has
random weights. Scores on them mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.harness import standins
from experiments.pose.pascal3d import LEVELS
from sharespace.extras import require
from sharespace.learn.training import quiet

CATEGORIES = ("car", "bus", "chair", "train")
SPLITS = {"train": 8, "val": 4}
WIDTH, HEIGHT = 60, 40
BOX = (10, 8, 44, 33)
"""Left, top, right, bottom."""


def make(folder: Path, categories: Sequence[str] = CATEGORIES) -> None:
    """``PASCAL3D+_release1.1``, ``OccludedPASCAL3D`` and ``base``."""
    with quiet():
        standins.make_vit(folder / "base", 32)
    for number, category in enumerate(categories):
        draw = np.random.default_rng(number)
        for split, count in SPLITS.items():
            names = [f"n0{number}_{split}_{at}" for at in range(count)]
            listed = folder / "PASCAL3D+_release1.1" / "Image_sets"
            listed.mkdir(parents=True, exist_ok=True)
            (listed / f"{category}_imagenet_{split}.txt").write_text("\n".join(names) + "\n")
            for name in names:
                _write_image(folder, category, name, split == "val", draw)


def _write_image(
    folder: Path, category: str, name: str, tested: bool, draw: np.random.Generator
) -> None:
    root, kind = folder / "PASCAL3D+_release1.1", f"{category}_imagenet"
    pixels = draw.integers(0, 256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    left, top, right, bottom = BOX
    pixels[top:bottom, left:right] = draw.integers(100, 200)
    _save(root / "Images" / kind / f"{name}.JPEG", pixels)
    angles = draw.uniform((0, -20, -15), (360, 60, 15))
    write_annotation(root / "Annotations" / kind / f"{name}.mat", f"{name}.JPEG", [angles])
    if tested:
        for number, level in enumerate(LEVELS.values()):
            _write_occluded(folder, f"{category}{level}", name, pixels, 0.3 + 0.2 * number)


def write_annotation(file: Path, image: str, objects: Sequence[Any], distance: float = 5.0) -> None:
    """A ``.mat`` file with an object for each azimuth, elevation and theta in degrees."""
    made: Any = np.empty(len(objects), dtype=object)
    for at, (azimuth, elevation, theta) in enumerate(objects):
        view = {
            "azimuth_coarse": 0.0,
            "elevation_coarse": 0.0,
            "azimuth": float(azimuth),
            "elevation": float(elevation),
            "distance": float(distance),
            "focal": 1.0,
            "px": WIDTH / 2,
            "py": HEIGHT / 2,
            "theta": float(theta),
            "viewport": 3000.0,
        }
        box = np.array(BOX, dtype=float)
        made[at] = {"class": "x", "bbox": box, "cad_index": 1, "viewpoint": view}
    imgsize = np.array([WIDTH, HEIGHT, 3])
    record = {"filename": image, "database": "ImageNet", "imgsize": imgsize, "objects": made}
    file.parent.mkdir(parents=True, exist_ok=True)
    require("scipy.io", "train").savemat(file, {"record": record})


def _write_occluded(folder: Path, kind: str, name: str, pixels: Any, part: float) -> None:
    root = folder / "OccludedPASCAL3D"
    left, top, right, bottom = BOX
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[top:bottom, left:right] = 255
    occluder = np.zeros((HEIGHT, WIDTH), dtype=bool)
    occluder[:, : left + round(part * (right - left))] = True
    hidden = pixels.copy()
    hidden[occluder] = 0
    _save(root / "images" / kind / f"{name}.JPEG", hidden)
    file = root / "annotations" / kind / f"{name}.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    boxes = np.array([[0, HEIGHT, 0, left, HEIGHT, WIDTH]])
    box = np.array([top, bottom, left, right, HEIGHT, WIDTH])
    np.savez(file, source=name, mask=mask, box=box, occluder_mask=occluder, occluder_box=boxes)


def _save(file: Path, pixels: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, quality=95)


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    standins.main(arguments, __doc__, make)
