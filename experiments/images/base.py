"""A frozen pretrained network in two halves: below what is adapted, and what is adapted."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from experiments.common.heads import Head
from torch import Tensor, nn


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

    @property
    def digest(self) -> str:
        """Of all weights and where the halves part: the same for the same hidden states."""
        found = hashlib.sha256(f"{self.side}".encode())
        for half in (self.lower, self.upper):
            found.update(b"half")
            for name, tensor in half.state_dict().items():
                found.update(name.encode())
                found.update(tensor.detach().float().contiguous().numpy().tobytes())
        return found.hexdigest()[:16]


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
