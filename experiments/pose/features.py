"""What the frozen lower blocks of the backbone make of each image, computed once and kept.

Only the upper blocks are adapted, so the lower ones give the same for every method and step.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from experiments.pose.images import Images

_BATCH = 100


@dataclass(frozen=True, eq=False)
class Features(Dataset[dict[str, Tensor]]):
    """Views as hidden states."""

    hidden: Tensor
    """float16 [views, channels, height, width], before the first adapted layer."""
    angles: Tensor
    """float32 [views, 3]: azimuth, elevation and theta in radians."""

    def __len__(self) -> int:
        return len(self.angles)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"hidden": self.hidden[index], "labels": self.angles[index]}

    def subset(self, count: int) -> Features:
        """The first views."""
        return Features(self.hidden[:count], self.angles[:count])

    def after(self, count: int) -> Features:
        """All but the first views."""
        return Features(self.hidden[count:], self.angles[count:])


def features(images: Images, backbone: Any, *, lower: int, cache: Path) -> Features:
    """Hidden states after ``lower`` layers, from the cache where they are there.

    Args:
        images: of a category.
        backbone: a ``MobileNetV1Model``.
        lower: layers that are not adapted.
        cache: folder; a file is named by the content that it was computed from.
    """
    file = cache / "features" / f"{_name(images, backbone, lower)}.safetensors"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part")
        save_file({"hidden": lower_states(images.pixels, backbone, lower)}, unfinished)
        unfinished.replace(file)
    return Features(load_file(file)["hidden"], images.angles)


def _name(images: Images, backbone: Any, lower: int) -> str:
    digest = hashlib.sha256(repr((tuple(images.pixels.shape), lower)).encode())
    digest.update(images.pixels.numpy().tobytes())
    for name, tensor in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


@torch.no_grad()
def lower_states(pixels: Tensor, backbone: Any, lower: int) -> Tensor:
    """float16 [views, channels, height, width] of uint8 images [views, 3, height, width]."""
    found = []
    for batch in torch.split(pixels, _BATCH):
        states = backbone.conv_stem(batch.float() / 127.5 - 1)
        for layer in backbone.layer[:lower]:
            states = layer(states)
        found.append(states.half())
    return torch.cat(found)
