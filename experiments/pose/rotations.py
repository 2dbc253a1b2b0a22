"""Viewpoints as rotation matrices, by the convention of Pascal3D+, and how far two are apart.

The object stands with z up and looks along -y. The camera goes round it by the azimuth, up by the
elevation, and is then turned in the image plane by theta. Camera axes: x right, y up, z backwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sharespace.errors import OptionError


def rotation(angles: Tensor) -> Tensor:
    """Object to camera: R = Rz(theta) Rx(elevation - 90 degrees) Rz(-azimuth).

    Args:
        angles: [..., 3], azimuth, elevation and theta in radians.

    Returns:
        The matrices, [..., 3, 3].
    """
    azimuth, elevation, theta = angles.unbind(-1)
    return about_z(theta) @ about_x(elevation - math.pi / 2) @ about_z(-azimuth)


def about_z(angle: Tensor) -> Tensor:
    """Rotations about z; [..., 3, 3] of angles [...] in radians."""
    c, s, o, i = _parts(angle)
    return torch.stack([c, -s, o, s, c, o, o, o, i], -1).reshape(*angle.shape, 3, 3)


def about_x(angle: Tensor) -> Tensor:
    """Rotations about x; likewise."""
    c, s, o, i = _parts(angle)
    return torch.stack([i, o, o, o, c, -s, o, s, c], -1).reshape(*angle.shape, 3, 3)


def _parts(angle: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)


def geodesic(first: Tensor, second: Tensor) -> Tensor:
    """The angle of the rotation between two: |log(first^T second)| / sqrt(2).

    By atan2 of its sine and cosine: arccos of the trace alone loses small angles to rounding.

    Args:
        first, second: rotation matrices [..., 3, 3], which broadcast.

    Returns:
        Radians in [0, pi], [...].
    """
    between = first.transpose(-1, -2) @ second
    trace = between.diagonal(dim1=-2, dim2=-1).sum(-1)
    skew = (between - between.transpose(-1, -2)) / 2
    sine = torch.linalg.matrix_norm(skew) / math.sqrt(2)
    return torch.atan2(sine, (trace - 1) / 2)


def error(predicted: Tensor, true: Tensor, group: Tensor | None = None) -> Tensor:
    """The geodesic error; of a symmetric object, the least over what looks the same.

    Args:
        predicted, true: [views, 3, 3].
        group: the object's own rotations that leave it as it is, [elements, 3, 3], with the
            identity; None: it has none.

    Raises:
        OptionError: the group has no identity.
    """
    if group is None:
        return geodesic(predicted, true)
    identity = torch.eye(3, dtype=group.dtype)
    if not bool((geodesic(group, identity) < 1e-4).any()):
        raise OptionError("group", "lacks the identity", "Add it")
    same = true[:, None] @ group[None].to(true.dtype)
    return geodesic(predicted[:, None], same).min(dim=1).values


def turns(axis: Sequence[float], count: int) -> Tensor:
    """The group of ``count`` equal turns about an axis; float32 [count, 3, 3]."""
    x, y, z = torch.tensor(axis, dtype=torch.float64) / math.hypot(*axis)
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    angles = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    group: Tensor = torch.linalg.matrix_exp(angles[:, None, None] * cross)
    return group.float()
