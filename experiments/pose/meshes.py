"""The objects: meshes turned upright and brought to one size."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np

from sharespace.errors import OptionError
from sharespace.extras import require

CATEGORIES = (
    "spot",
    "beetle-alt",
    "suzanne",
    "cow",
    "teapot",
    "stanford-bunny",
    "rocker-arm",
    "fandisk",
)
"""All meshes; their files have y up."""
_TURNED = {"spot": 180, "cow": -90, "teapot": -90, "stanford-bunny": 90, "rocker-arm": -90}
"""Degrees about the upright axis, so that what has a front looks along -y."""


def load(folder: Path, category: str) -> Any:
    """A ``trimesh.Trimesh`` with z up, its sphere about the origin with radius 1.

    Args:
        folder: has ``<category>.obj.gz`` or ``<category>.obj``.
        category: name of the mesh.

    Raises:
        OptionError: there is no such file.
        MissingExtraError: trimesh or embreex is not installed.
    """
    trimesh = require("trimesh", "bench")
    require("embreex", "bench")
    mesh = trimesh.load(
        io.BytesIO(_bytes(folder, category)), file_type="obj", force="mesh", process=False
    )
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    upright = np.asarray(mesh.vertices) @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    yaw = np.radians(_TURNED.get(category, 0))
    upright[:, :2] @= np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
    upright -= (upright.max(0) + upright.min(0)) / 2
    upright /= np.linalg.norm(upright, axis=1).max()
    return trimesh.Trimesh(upright, mesh.faces, process=False)


def _bytes(folder: Path, category: str) -> bytes:
    packed, plain = folder / f"{category}.obj.gz", folder / f"{category}.obj"
    if packed.is_file():
        return gzip.decompress(packed.read_bytes())
    if plain.is_file():
        return plain.read_bytes()
    raise OptionError(str(packed), "there is no such mesh", "Give the folder of the meshes")


def deviation(mesh: Any, turn: Any, points: int = 4000) -> float:
    """How far a rotation takes the surface from itself: mean distance, as a part of the radius.

    What the sampling of the surface makes of the identity is taken off, so that a symmetry of the
    object has 0 up to noise.

    Args:
        mesh: as ``load`` gives it.
        turn: rotation matrix [3, 3].
        points: sampled on the surface; the turned ones, against eight times as many.
    """
    trimesh = require("trimesh", "bench")
    tree = require("scipy.spatial", "train").cKDTree
    few, _ = trimesh.sample.sample_surface(mesh, points, seed=0)
    many, _ = trimesh.sample.sample_surface(mesh, 8 * points, seed=1)
    surface = tree(many)
    noise = surface.query(few)[0].mean()
    return float(surface.query(few @ np.asarray(turn).T)[0].mean() - noise)
