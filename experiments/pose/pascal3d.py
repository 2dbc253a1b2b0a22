"""Pascal3D+ (release 1.1) and OccludedPASCAL3D+ from their folders, as they come.

Pascal3D+: ``Image_sets/<category>_imagenet_<train|val>.txt``, ``Images/<category>_imagenet`` and
``Annotations/<category>_imagenet`` (one ``.mat`` an image, with a ``record``). OccludedPASCAL3D+:
``images/<category>FGL<n>_BGL<n>/<name>.JPEG`` and ``annotations/`` likewise with ``.npz``; it has
the masks, and the viewpoints are those of the Pascal3D+ annotation of the same name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sharespace.errors import OptionError
from sharespace.extras import require

CATEGORIES = (
    "aeroplane",
    "bicycle",
    "boat",
    "bottle",
    "bus",
    "car",
    "chair",
    "diningtable",
    "motorbike",
    "sofa",
    "train",
    "tvmonitor",
)
LEVELS = {"L1": "FGL1_BGL1", "L2": "FGL2_BGL2", "L3": "FGL3_BGL3"}
"""Level -> the end of a folder's name in OccludedPASCAL3D+."""
_MARGIN = 0.1
"""Of the box on every side, in its own size."""


@dataclass(frozen=True)
class Annotated:
    """One image with one object."""

    image: Path
    box: tuple[float, float, float, float]
    """Left, top, right and bottom, in pixels."""
    angles: tuple[float, float, float]
    """Azimuth, elevation and theta in radians."""


def split(root: Path, category: str, name: str) -> list[Annotated]:
    """Images of a category that show one object with a fine viewpoint, from the ImageNet part.

    Images with more objects, or with a viewpoint that was only annotated coarsely (distance 0), are
    left out, as OccludedPASCAL3D+ and those who score on it do.

    Args:
        root: ``PASCAL3D+_release1.1``.
        category: of the twelve.
        name: ``"train"`` or ``"val"``.

    Raises:
        OptionError: the list of images is not there, or no image is left.
    """
    folder = f"{category}_imagenet"
    listed = root / "Image_sets" / f"{folder}_{name}.txt"
    if not listed.is_file():
        raise OptionError(str(listed), "there is no such file", "Give PASCAL3D+_release1.1")
    objects = []
    for image in listed.read_text().split():
        annotation = root / "Annotations" / folder / f"{image}.mat"
        known = read_annotation(annotation, root / "Images" / folder / f"{image}.JPEG")
        if known is not None:
            objects.append(known)
    if not objects:
        raise OptionError(str(listed), "no image of it has one object with a viewpoint")
    return objects


def occluded(root: Path, clean: Sequence[Annotated], category: str, level: str) -> list[Annotated]:
    """The same images under occlusion: those that the level has.

    Args:
        root: of OccludedPASCAL3D+.
        clean: what ``split`` gave.
        category: of the twelve.
        level: ``"L1"``, ``"L2"`` or ``"L3"``.

    Raises:
        OptionError: there are none.
    """
    folder = root / "images" / f"{category}{LEVELS[level]}"
    pairs = [(folder / known.image.name, known) for known in clean]
    hidden = [Annotated(file, known.box, known.angles) for file, known in pairs if file.is_file()]
    if not hidden:
        raise OptionError(str(folder), "has no image of the list", "Give OccludedPASCAL3D+")
    return hidden


def covered(root: Path, category: str, level: str, name: str) -> float:
    """Part of the object that the occluders hide, by the masks of OccludedPASCAL3D+.

    Args:
        root: of OccludedPASCAL3D+.
        category, level: as ``occluded``.
        name: of the image, without its suffix.
    """
    file = root / "annotations" / f"{category}{LEVELS[level]}" / f"{name}.npz"
    with np.load(file, allow_pickle=True) as arrays:
        # A grey image with the object bright; what made the set takes it above 10.
        shown = arrays["mask"] > 10
        return float((arrays["occluder_mask"] > 0.5)[shown].mean())


def read_annotation(file: Path, image: Path) -> Annotated | None:
    """The object of a ``.mat`` file; None where there are more, or it has no fine viewpoint.

    Raises:
        OptionError: the file is missing, or is no annotation of Pascal3D+.
        MissingExtraError: scipy is not installed.
    """
    if not file.is_file():
        raise OptionError(str(file), "there is no such file", "Give PASCAL3D+_release1.1")
    record = require("scipy.io", "train").loadmat(file, squeeze_me=True, struct_as_record=False)
    if "record" not in record:
        raise OptionError(str(file), "has no record", "Give annotations of Pascal3D+")
    objects = np.atleast_1d(record["record"].objects)
    if len(objects) != 1:
        return None
    view = getattr(objects[0], "viewpoint", None)
    if not float(_number(view, "distance")):
        return None
    degrees = [_number(view, name) for name in ("azimuth", "elevation", "theta")]
    left, top, right, bottom = (float(v) for v in objects[0].bbox)
    azimuth, elevation, theta = (math.radians(d) for d in degrees)
    return Annotated(image, (left, top, right, bottom), (azimuth, elevation, theta))


def _number(view: Any, name: str) -> float:
    """A field of the viewpoint; 0 where it is missing or empty."""
    value = np.asarray(getattr(view, name, 0.0), dtype=float).reshape(-1)
    return float(value[0]) if value.size else 0.0


@dataclass(frozen=True, eq=False)
class Photographs(Dataset[dict[str, Tensor]]):
    """Objects cut out by their boxes."""

    annotated: Sequence[Annotated]
    size: int
    """Side of the images that the model takes."""
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    deviation: Sequence[float] = (0.5, 0.5, 0.5)

    def __len__(self) -> int:
        return len(self.annotated)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """pixel_values, float32 [3, size, size]; labels, float32 [3]."""
        known = self.annotated[index]
        pixels = np.asarray(cut(known, self.size), dtype=np.float32) / 255
        pixels = (pixels - np.asarray(self.mean)) / np.asarray(self.deviation)
        return {
            "pixel_values": torch.from_numpy(pixels).permute(2, 0, 1).float(),
            "labels": torch.tensor(known.angles, dtype=torch.float32),
        }


def cut(known: Annotated, size: int) -> Image.Image:
    """The square about the box with a margin; what is beyond the image is black."""
    left, top, right, bottom = known.box
    half = max(right - left, bottom - top) * (1 + 2 * _MARGIN) / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    corners = (round(x - half), round(y - half), round(x + half), round(y + half))
    with Image.open(known.image) as whole:
        square: Image.Image = whole.convert("RGB").crop(corners)
    return square.resize((size, size), Image.Resampling.BILINEAR)
