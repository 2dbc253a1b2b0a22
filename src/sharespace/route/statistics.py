"""What the router remembers of a task: count, mean and scatter of its features, never an input.

They are sufficient for a Gaussian per task. Pieces are put together by the parallel update of
Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances" (1979); all in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.errors import MismatchError, OptionError


@dataclass(frozen=True, eq=False)
class Statistics:
    """Sufficient statistics of one task's features."""

    count: int
    """Inputs seen."""
    mean: Tensor
    """float64 [d]."""
    scatter: Tensor
    """float64 [d, d], exactly symmetric: sum over the inputs of (x - mean)(x - mean)^T."""

    def __post_init__(self) -> None:
        d = len(self.mean) if self.mean.ndim == 1 else 0
        fits = d > 0 and self.scatter.shape == (d, d) and self.count > 0
        if not fits or {self.mean.dtype, self.scatter.dtype} != {torch.float64}:
            why = (
                f"count {self.count}, mean {tuple(self.mean.shape)} {self.mean.dtype}, "
                f"scatter {tuple(self.scatter.shape)} {self.scatter.dtype}"
            )
            raise OptionError("statistics", why, "Make them with Statistics.from_features")

    @classmethod
    def from_features(cls, features: Tensor) -> Statistics:
        """Statistics of [inputs, d] features of any float dtype.

        Raises:
            OptionError: no inputs, not a matrix, or a value that is not finite.
        """
        if features.ndim != 2 or not features.numel():
            why = f"shape {tuple(features.shape)}, not [inputs, d]"
            raise OptionError("features", why, "Give one row for each input")
        if not bool(torch.isfinite(features).all()):
            raise OptionError("features", "not all are finite", "Look at the model and its inputs")
        x = features.detach().cpu().double()
        mean = x.mean(dim=0)
        centred = x - mean
        return cls(len(x), mean, _symmetric(centred.mT @ centred))

    @property
    def dimension(self) -> int:
        """d."""
        return len(self.mean)

    def add(self, other: Statistics) -> Statistics:
        """Statistics of both sets of inputs together.

        Raises:
            MismatchError: features of another dimension.
        """
        check_dimension("statistics", other.dimension, self.dimension)
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = (self.count * self.mean + other.count * other.mean) / count
        between = torch.outer(apart, apart) * (self.count * other.count / count)
        return Statistics(count, mean, self.scatter + other.scatter + between)


def check_dimension(what: str, found: int, wanted: int) -> None:
    """Refuse features of another dimension.

    Raises:
        MismatchError: ``found`` is not ``wanted``.
    """
    if found != wanted:
        raise MismatchError(
            what,
            f"dimension {found}, while the router's features have {wanted}",
            "Take all features from the same base model, in the same way",
        )


def _symmetric(matrix: Tensor) -> Tensor:
    """The lower triangle, mirrored: a product is symmetric only up to rounding."""
    lower = matrix.tril()
    return lower + lower.tril(-1).mT
