"""A frozen pretrained network in two halves: below what is adapted, and what is adapted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.harness.cached import Features, Tensors, cached, digest
from experiments.harness.heads import Head
from experiments.images.sets import ImageSet

_BATCH = 50
_EVALUATED = 100
"""Examples in a batch."""


@dataclass(frozen=True, eq=False)
class Base:
    """A backbone. ``upper(lower(x))`` are its features, float32 [examples, width]."""

    name: str
    side: int
    """Pixels of an image that goes into it."""
    lower: nn.Module
    """Frozen: images float32 [examples, 3, side, side] in [-1, 1] -> hidden states."""
    upper: nn.Module
    """Hidden states -> features."""
    targets: tuple[str, ...]
    """Modules of ``upper`` that are adapted, by the ends of their names."""
    bf16: bool = False
    """Frozen weights are bfloat16, and it is trained under autocast."""

    @cached_property
    def digest(self) -> str:
        """Of all weights and where the halves part: the same for the same hidden states."""
        return digest(self.side, self.lower, "upper half", self.upper)


class Classifier(nn.Module):
    """The upper half of a backbone with a task's head: what the methods train."""

    def __init__(self, upper: nn.Module, head: Head) -> None:
        super().__init__()
        self.backbone = upper
        self.classifier = head

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.classifier(self.backbone(hidden))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def maker(base: Base, head: Head) -> Callable[[], nn.Module]:
    """Makes models of a task that share nothing with other tasks' models."""
    return lambda: Classifier(copy.deepcopy(base.upper), copy.deepcopy(head)).eval()


def computing(base: Base) -> Any:
    """The context that its halves are called in."""
    return torch.autocast("cpu", torch.bfloat16, enabled=base.bf16)


def pixels(images: Tensor, side: int) -> Tensor:
    """What goes into a base.

    Args:
        images: uint8 [examples, 3, height, width].
        side: pixels.

    Returns:
        float32 [examples, 3, side, side] in [-1, 1].
    """
    scaled = images.float() / 127.5 - 1
    if scaled.shape[-1] == side:
        return scaled
    return nn.functional.interpolate(
        scaled, size=side, mode="bicubic", antialias=True, align_corners=False
    ).clamp(-1, 1)


def flipped(examples: ImageSet) -> ImageSet:
    """As seen in a mirror."""
    return replace(examples, images=examples.images.flip(3))


def features(examples: ImageSet, base: Base, cache: Path) -> Features:
    """What the lower half of a base makes of a task's examples, from the cache where it is there.

    Args:
        examples: of a task.
        base: the backbone.
        cache: folder.
    """
    name = digest(base.digest, examples.images)
    tensors = cached(cache, name, lambda: _compute(examples, base))
    return Features(tensors["hidden"], examples.labels, tensors["pooled"])


@torch.no_grad()
def _compute(examples: ImageSet, base: Base) -> Tensors:
    hidden, pooled = [], []
    for images in torch.split(examples.images, _BATCH):
        with computing(base):
            states = base.lower(pixels(images, base.side)).bfloat16()
            pooled.append(base.upper(states).float())
        hidden.append(states.contiguous())
    return {"hidden": torch.cat(hidden), "pooled": torch.cat(pooled)}


@torch.no_grad()
def accuracy(model: nn.Module, test: Features, base: Base) -> float:
    """Percent of the examples."""
    right = 0
    parts = (torch.split(part, _EVALUATED) for part in (test.hidden, test.labels))
    for hidden, labels in zip(*parts, strict=True):
        with computing(base):
            predicted = model(hidden=hidden)["logits"].argmax(1)
        right += int((predicted == labels).sum())
    return 100 * right / len(test)
