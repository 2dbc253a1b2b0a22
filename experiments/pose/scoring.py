"""Scores of predicted viewpoints as Pascal3D+ is scored."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from experiments.pose.rotations import error, rotation
from sharespace.errors import OptionError


@dataclass(frozen=True)
class PoseScore:
    """Of one test set."""

    acc_pi_6: float
    """Percent of the views with an error below 30 degrees."""
    acc_pi_18: float
    """Percent below 10 degrees."""
    median: float
    """Median error in degrees."""

    def to_record(self) -> dict[str, float]:
        return asdict(self)


def pose_score(predicted: Tensor, true: Tensor, group: Tensor | None = None) -> PoseScore:
    """Scores of angles.

    Args:
        predicted, true: azimuth, elevation, theta in radians, [views, 3].
        group: of a symmetric object (``rotations.error``).

    Raises:
        OptionError: there are no views.
    """
    if not len(true):
        raise OptionError("test views", "there are none", "Give at least one")
    errors = error(rotation(predicted.double()), rotation(true.double()), group)
    return PoseScore(
        acc_pi_6=100 * float((errors < math.pi / 6).double().mean()),
        acc_pi_18=100 * float((errors < math.pi / 18).double().mean()),
        median=math.degrees(float(torch.median(errors))),
    )
