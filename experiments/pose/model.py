"""The upper blocks of a MobileNet with a head of angle bins: the base model of the experiment."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.harness import heads
from experiments.harness.heads import Head

_BATCH = 100


@dataclass(frozen=True)
class Bins:
    """The bins of one angle."""

    count: int
    low: float = 0.0
    """Centre of the first one, in degrees."""
    high: float = 360.0
    """Centre of the last one; of a full circle, that of the first one again."""
    circular: bool = True

    @property
    def width(self) -> float:
        """Degrees from one centre to the next."""
        return (self.high - self.low) / (self.count - (not self.circular))

    def weights(self, angles: Tensor) -> Tensor:
        """Targets: an angle between two centres has a part of each, [views, count].

        Args:
            angles: radians, [views].
        """
        place = (angles * (180 / math.pi) - self.low) / self.width
        if self.circular:
            place = place % self.count
        place = place.clamp(0, self.count if self.circular else self.count - 1)
        first = place.floor().long().clamp(max=self.count - 1)
        part = place - first
        second = (
            (first + 1) % self.count if self.circular else (first + 1).clamp(max=self.count - 1)
        )
        targets = torch.zeros(len(angles), self.count, dtype=angles.dtype)
        rows = torch.arange(len(angles))
        targets[rows, first] += 1 - part
        targets[rows, second] += part
        return targets

    def decode(self, logits: Tensor) -> Tensor:
        """The mean over the likeliest bin and its neighbours; radians, [views]."""
        steps = torch.tensor([-1, 0, 1])
        near = logits.argmax(1)[:, None] + steps
        inside = torch.ones_like(near, dtype=torch.bool)
        if not self.circular:
            inside = (near >= 0) & (near < self.count)
        weights = logits.gather(1, near % self.count).masked_fill(~inside, -math.inf).softmax(1)
        place = near[:, 1] + (weights * steps).sum(1)
        return (self.low + place * self.width) * (math.pi / 180)


@dataclass(frozen=True)
class AngleBins:
    """Of all three angles."""

    azimuth: Bins = Bins(24)
    elevation: Bins = Bins(8, -10.0, 60.0, circular=False)
    theta: Bins = Bins(7, -30.0, 30.0, circular=False)

    @property
    def all(self) -> tuple[Bins, Bins, Bins]:
        return self.azimuth, self.elevation, self.theta

    @property
    def counts(self) -> list[int]:
        return [bins.count for bins in self.all]

    def loss(self, logits: Tensor, angles: Tensor) -> Tensor:
        """Cross entropy, the sum over the three angles.

        Args:
            logits: [views, all bins].
            angles: radians, [views, 3].
        """
        parts = zip(self.all, torch.split(logits, self.counts, 1), angles.unbind(1), strict=True)
        losses = [nn.functional.cross_entropy(mine, b.weights(a)) for b, mine, a in parts]
        return torch.stack(losses).sum()

    def decode(self, logits: Tensor) -> Tensor:
        """Radians, [views, 3]."""
        parts = zip(self.all, torch.split(logits, self.counts, 1), strict=True)
        return torch.stack([bins.decode(mine) for bins, mine in parts], 1)


class UpperMobileNet(nn.Module):
    """Layers ``lower`` to the last of a ``MobileNetV1Model``, and a head."""

    def __init__(
        self, layers: Sequence[nn.Module], lower: int, head: Head, bins: AngleBins, cells: int
    ) -> None:
        super().__init__()
        self.lower, self.bins, self.cells = lower, bins, cells
        self.layer = nn.ModuleDict({str(i): layers[i] for i in range(lower, len(layers))})
        self.classifier = head

    def features(self, hidden: Tensor) -> Tensor:
        """What the head sees; float32 [views, channels * cells * cells].

        Args:
            hidden: output of layer ``lower - 1``, [views, channels, height, width].
        """
        states = hidden.contiguous(memory_format=torch.channels_last)
        for layer in self.layer.values():
            states = layer(states)
        return nn.functional.adaptive_avg_pool2d(states, self.cells).flatten(1)

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits [views, bins]; with angles [views, 3] as labels, the loss."""
        logits = self.classifier(self.features(hidden))
        if labels is None:
            return {"logits": logits}
        return {"loss": self.bins.loss(logits, labels), "logits": logits}


def upper_mobilenet(
    backbone: Any, lower: int, head: Head, bins: AngleBins, cells: int
) -> UpperMobileNet:
    """A model of its own: nothing that is put into it touches another task's.

    The frozen batch norms are multiplied into the convolutions: the same function, faster.
    """
    layers = copy.deepcopy(backbone.layer)
    for layer in layers:
        norm, layer.normalization = layer.normalization, None
        layer.convolution = nn.utils.fusion.fuse_conv_bn_eval(layer.convolution, norm)
    model = UpperMobileNet(layers, lower, copy.deepcopy(head), bins, cells)
    return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def train_head(
    features: Tensor, angles: Tensor, bins: AngleBins, seed: int, steps: int = 400
) -> Head:
    """The head alone, on the base model's features: where every method starts from.

    Args:
        features: float32 [views, features].
        angles: radians, [views, 3].
        bins: of the angles.
        seed: of the order of the views.
        steps: of 256 views.
    """
    head = Head(features, sum(bins.counts), margin=1e-3)
    training = heads.HeadTraining(steps, decay=1e-1, loss=bins.loss)
    return heads.train_head(head, features, angles, seed, training)


@torch.no_grad()
def lower_states(pixels: Tensor, backbone: Any, lower: int) -> Tensor:
    """What the frozen layers make of images.

    Args:
        pixels: uint8 [views, 3, height, width].
        backbone: a ``MobileNetV1Model``.
        lower: layers that are not adapted.

    Returns:
        float16 [views, channels, height, width].
    """
    batches = []
    for batch in torch.split(pixels, _BATCH):
        states = backbone.conv_stem(batch.float() / 127.5 - 1)
        for layer in backbone.layer[:lower]:
            states = layer(states)
        batches.append(states.half())
    return torch.cat(batches)
