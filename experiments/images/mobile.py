"""Base "mobilenet": the ImageNet MobileNet v1 0.25, adapted at its upper 1x1 convolutions."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.harness.mobilenet import load_mobilenet
from experiments.images.base import Base


class Stack(nn.Module):
    """Layers of a ``MobileNetV1Model`` one after the other, by their numbers in it."""

    def __init__(self, layers: dict[str, nn.Module], pooled: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleDict(layers)
        self.pooled = pooled

    def forward(self, hidden: Tensor) -> Tensor:
        states = hidden.float().contiguous(memory_format=torch.channels_last)
        for layer in self.layer.values():
            states = layer(states)
        return states.mean((2, 3)) if self.pooled else states


def mobilenet(folder: Path, blocks: int, side: int) -> Base:
    """The backbone of the weights in a folder.

    Args:
        folder: see ``load_mobilenet``.
        blocks: of the 13, those that are frozen and computed once.
        side: pixels of an image.

    Raises:
        OptionError, MismatchError: see ``load_mobilenet``.
    """
    model = load_mobilenet(folder).mobilenet_v1
    layers = list(model.layer)
    below = 2 * blocks
    lower = {"stem": model.conv_stem} | {str(i): x for i, x in enumerate(layers[:below])}
    upper = {str(below + i): x for i, x in enumerate(layers[below:])}
    return Base(
        name=f"mobilenet-v1-0.25 (ImageNet), {side} pixels",
        side=side,
        lower=Stack(lower, pooled=False).eval(),
        upper=Stack(upper, pooled=True).eval(),
        targets=tuple(f"layer.{i}.convolution" for i in range(below + 1, len(layers), 2)),
    )
