"""The demo's tasks: handwritten digits (scikit-learn's ``load_digits``) seen in other ways.

1797 real images of 8 x 8 pixels, E. Alpaydin and C. Kaynak, UCI repository, 1998.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sharespace.extras import require

SIDE = 8
_MEAN, _DEVIATION = 0.3, 0.37  # of the pixels, scaled to [0, 1]


@dataclass(frozen=True)
class Task:
    """Images changed in one way, with labels of its own."""

    name: str
    description: str
    view: Callable[[Tensor], Tensor]
    """Images (count, 8, 8) in [0, 1] -> the same shape."""
    label: Callable[[Tensor], Tensor]
    """Digits (count,) -> labels."""
    labels: int = 10


class Examples(Dataset[dict[str, Tensor]]):
    """Images (count, 1, 8, 8), standardised, and labels (count,), under the model's names."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = ((images - _MEAN) / _DEVIATION)[:, None]
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


@dataclass(frozen=True, eq=False)
class Digits:
    """The images, shuffled and split."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def examples(self, task: Task) -> tuple[Examples, Examples]:
        """(train, test) of a task."""
        train, test = (Examples(task.view(x), task.label(y)) for x, y in (self.train, self.test))
        return train, test


def load(train_images: int, seed: int) -> Digits:
    """The digits; the same split for every task.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    bunch: Any = require("sklearn.datasets", "train").load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32) / 16
    digits = torch.tensor(bunch.target, dtype=torch.long)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    train, test = order[:train_images], order[train_images:]
    return Digits((images[train], digits[train]), (images[test], digits[test]))


def _same(values: Tensor) -> Tensor:
    return values


def _rotated(images: Tensor) -> Tensor:
    return images.rot90(1, (1, 2))


def _faint(images: Tensor) -> Tensor:
    return 0.2 * images


def _shuffled(images: Tensor) -> Tensor:
    order = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(5))
    return images.flatten(1)[:, order].view_as(images)


def _checkerboard(images: Tensor) -> Tensor:
    square = torch.arange(SIDE)
    return images * ((square[:, None] + square) % 2 * 2 - 1)


def _mirrored(images: Tensor) -> Tensor:
    return images.flip(2)


def _shifted(images: Tensor) -> Tensor:
    return images.roll((SIDE // 2, SIDE // 2), (1, 2))


def _five_or_more(digits: Tensor) -> Tensor:
    return (digits >= 5).long()


PLAIN = Task("plain", "the digits as they are", _same, _same)
"""What the base model is pretrained on."""

TASKS = (
    Task("rotated", "turned by 90 degrees", _rotated, _same),
    Task("faint", "a fifth of the contrast", _faint, _same),
    Task("shuffled", "pixels in another order", _shuffled, _same),
    Task("checkerboard", "every other pixel negated", _checkerboard, _same),
    Task("mirrored", "left and right swapped", _mirrored, _same),
    Task("shifted", "by half an image: is it 5 or more?", _shifted, _five_or_more, labels=2),
)
"""In the order in which they come."""
