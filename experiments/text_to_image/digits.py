"""Handwritten digits and what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from experiments.text_to_image.settings import SIDE

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = ("a {}", "the digit {}", "a handwritten {}")
"""Of the base model's training. Styles are trained, and all images made, with the first."""


@dataclass(frozen=True, eq=False)
class Digits:
    """Images in [-1, 1], white on black, float32 [count, 1, side, side]; labels int64 [count]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Digits:
        """The first ones; classes are mixed."""
        return Digits(self.images[:count], self.labels[:count])


def read(data: Path, split: Literal["train", "test"]) -> Digits:
    """MNIST from ``mnist/compact.npz`` (x_train uint8 [count, 28, 28], y_train, x_test, y_test).

    The border of two pixels, which is empty but for a few strokes, is cut off.
    """
    with np.load(data / "mnist" / "compact.npz") as file:
        pixels, labels = torch.from_numpy(file[f"x_{split}"]), torch.from_numpy(file[f"y_{split}"])
    cut = (pixels.shape[-1] - SIDE) // 2
    inner = pixels[:, None, cut : cut + SIDE, cut : cut + SIDE]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return Digits((inner.float() / 127.5 - 1)[order], labels.long()[order])


def prompt(label: int) -> str:
    """The caption that images are made with."""
    return CAPTIONS[0].format(NAMES[label])
