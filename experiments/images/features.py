"""What the frozen lower half of a base makes of each image, computed once and kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from experiments.images.base import Base, computing, pixels
from experiments.images.sets import ImageSet
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

_BATCH = 50


@dataclass(frozen=True, eq=False)
class Features(Dataset[dict[str, Tensor]]):
    """Examples as hidden states."""

    hidden: Tensor
    """bfloat16 [examples, ...], before the first adapted layer."""
    pooled: Tensor
    """float32 [examples, width]: the base's own features."""
    labels: Tensor
    """int64 [examples]."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"hidden": self.hidden[index], "labels": self.labels[index]}

    def rows(self, chosen: slice) -> Features:
        """Some of the examples."""
        return Features(self.hidden[chosen], self.pooled[chosen], self.labels[chosen])


def join(first: Features, second: Features) -> Features:
    """Both, one after the other."""
    return Features(
        torch.cat([first.hidden, second.hidden]),
        torch.cat([first.pooled, second.pooled]),
        torch.cat([first.labels, second.labels]),
    )


def flipped(examples: ImageSet) -> ImageSet:
    """As seen in a mirror."""
    return ImageSet(examples.images.flip(3), examples.labels, examples.classes, examples.names)


def features(examples: ImageSet, base: Base, cache: Path) -> Features:
    """Hidden states, from the cache where they are there.

    Args:
        examples: of a task.
        base: the backbone.
        cache: folder; a file is named by the content that it was computed from.
    """
    name = hashlib.sha256(base.digest.encode())
    name.update(examples.images.contiguous().numpy().tobytes())
    file = cache / f"{name.hexdigest()[:24]}.safetensors"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part")
        save_file(_compute(examples, base), unfinished)
        unfinished.replace(file)
    found = load_file(file)
    return Features(found["hidden"], found["pooled"], examples.labels)


@torch.no_grad()
def _compute(examples: ImageSet, base: Base) -> dict[str, Tensor]:
    hidden, pooled = [], []
    for images in torch.split(examples.images, _BATCH):
        with computing(base):
            states = base.lower(pixels(images, base.side)).bfloat16()
            pooled.append(base.upper(states).float())
        hidden.append(states.contiguous())
    return {"hidden": torch.cat(hidden), "pooled": torch.cat(pooled)}
