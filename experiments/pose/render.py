"""One view of a mesh: ray casting, Lambert shading, a light, a background, all varied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.pose.rotations import rotation
from sharespace.extras import require

Array = NDArray[np.float64]

VERSION = 1
"""Of what a scene looks like; a change of it makes the caches' images anew."""
DISTANCE = 4.0
"""Of the camera, in radii of the object."""


@dataclass(frozen=True)
class Scene:
    """All about one view but the mesh."""

    azimuth: float
    """Radians, as all angles."""
    elevation: float
    theta: float
    scale: float
    """Radius of the object in halves of the image."""
    shift: tuple[float, float]
    """Of its centre, in halves of the image."""
    light: tuple[float, float, float]
    """Direction to the light in the camera's axes."""
    ambient: float
    colour: tuple[float, float, float]
    background: int
    """Seed of it."""


def draw_scene(angles: tuple[float, float, float], generator: np.random.Generator) -> Scene:
    """Everything that is varied at random, for a given viewpoint."""
    light = generator.normal(size=3) * (0.8, 0.6, 0.3) + (0.0, 0.7, 0.8)
    tone = generator.uniform(0.45, 0.95)
    colour = np.clip(tone + generator.uniform(-0.2, 0.2, size=3), 0.2, 1.0)
    return Scene(
        *angles,
        scale=float(generator.uniform(0.7, 0.95)),
        shift=_triple(generator.uniform(-0.1, 0.1, size=2))[:2],
        light=_triple(light / np.linalg.norm(light)),
        ambient=float(generator.uniform(0.15, 0.4)),
        colour=_triple(colour),
        background=int(generator.integers(2**31)),
    )


def _triple(values: Any) -> tuple[float, float, float]:
    return tuple(float(v) for v in values)  # type: ignore[return-value]


def render(mesh: Any, scene: Scene, pixels: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The image, uint8 [pixels, pixels, 3], and where the object is, bool [pixels, pixels]."""
    turn = _turn(scene)
    hit, normals = _cast(mesh, scene, turn, pixels)
    image = background(scene.background, pixels)
    towards = normals @ turn.T @ np.asarray(scene.light)
    brightness = scene.ambient + (1 - scene.ambient) * np.clip(towards, 0, 1)
    image[hit] = brightness[:, None] * np.asarray(scene.colour)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8), hit


def _turn(scene: Scene) -> Array:
    angles = torch.tensor([scene.azimuth, scene.elevation, scene.theta], dtype=torch.float64)
    matrix: Array = rotation(angles).numpy()
    return matrix


def _cast(mesh: Any, scene: Scene, turn: Array, pixels: int) -> tuple[NDArray[np.bool_], Array]:
    """Which pixels see the mesh, and the smooth normals there, in the object's axes."""
    focal = scene.scale * np.sqrt(DISTANCE**2 - 1)
    axis = (np.arange(pixels) + 0.5) / pixels * 2 - 1
    right, down = np.meshgrid(axis, axis)
    directions = np.stack(
        [(right - scene.shift[0]) / focal, -(down - scene.shift[1]) / focal, -np.ones_like(right)],
        -1,
    ).reshape(-1, 3)
    near = np.linalg.norm(directions[:, :2], axis=1) < 1 / np.sqrt(DISTANCE**2 - 1) + 1e-3
    rays = directions[near] @ turn
    origins = np.broadcast_to(np.array([0.0, 0.0, DISTANCE]) @ turn, rays.shape)
    faces = mesh.ray.intersects_first(origins, rays)
    seen = faces >= 0
    hit = np.zeros(pixels * pixels, dtype=bool)
    hit[np.flatnonzero(near)[seen]] = True
    return hit.reshape(pixels, pixels), _normals(mesh, origins[seen], rays[seen], faces[seen])


def _normals(mesh: Any, origins: Array, rays: Array, faces: NDArray[np.int64]) -> Array:
    """Vertex normals, interpolated where the rays meet the faces, towards the camera."""
    flat = mesh.face_normals[faces]
    corners = mesh.triangles[faces]
    along = ((corners[:, 0] - origins) * flat).sum(1) / (rays * flat).sum(1)
    triangles = require("trimesh.triangles", "bench")
    weights = triangles.points_to_barycentric(corners, origins + along[:, None] * rays)
    smooth = (mesh.vertex_normals[mesh.faces[faces]] * weights[:, :, None]).sum(1)
    smooth /= np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-12)
    away = (smooth * rays).sum(1) > 0
    smooth[away] *= -1
    towards_camera: Array = smooth
    return towards_camera


def background(seed: int, pixels: int) -> Array:
    """A smooth random pattern of two or more colours, in [0, 1], [pixels, pixels, 3]."""
    generator = np.random.default_rng(seed)
    cells = int(generator.integers(2, 9))
    tone = generator.uniform(0.2, 0.8, size=(1, 3, 1, 1))
    spread = generator.uniform(0.1, 0.35)
    coarse = torch.from_numpy(tone + generator.uniform(-spread, spread, (1, 3, cells, cells)))
    mode = "bilinear" if generator.random() < 0.7 else "nearest"
    corners = {"align_corners": False} if mode == "bilinear" else {}
    fine = torch.nn.functional.interpolate(coarse, size=pixels, mode=mode, **corners)
    pattern: Array = fine[0].permute(1, 2, 0).numpy()
    noise = generator.normal(scale=generator.uniform(0, 0.08), size=pattern.shape)
    return np.clip(pattern + noise, 0, 1)
