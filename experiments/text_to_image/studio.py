"""All that images are made and judged with, and the model that is trained to make them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from experiments.text_to_image import judges
from experiments.text_to_image.digits import Digits, prompt, read
from experiments.text_to_image.judges import Judge
from experiments.text_to_image.model import embed, v_loss
from experiments.text_to_image.painting import Painter
from experiments.text_to_image.pretrain import base
from experiments.text_to_image.settings import Size
from experiments.text_to_image.styles import styled

_UNPROMPTED = 10
"""Every so many-th example has no caption, for guidance."""


class Denoiser(nn.Module):
    """A UNet with the loss of its training, as the Trainer wants a model.

    Modules are named as in a pipeline's LoRA file ("unet.down_blocks...."), so that adapters that
    diffusers wrote fit it.
    """

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.unet = unet
        self.scheduler = scheduler

    def forward(self, latents: Tensor, prompts: Tensor) -> dict[str, Tensor]:
        """Loss at random times with random noise."""
        return {"loss": v_loss(self.unet, self.scheduler, latents, prompts)}


class StyleImages(Dataset[dict[str, Tensor]]):
    """Training images of a style, with the hidden states of their captions."""

    def __init__(self, digits: Digits, style: str, pipe: Any) -> None:
        with torch.no_grad():
            self.latents = pipe.vae.encode(styled(style, digits.images))
            self.table = embed(pipe, [prompt(label) for label in range(10)] + [""])
        self.labels = digits.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = -1 if index % _UNPROMPTED == 0 else int(self.labels[index])
        return {"latents": self.latents[index], "prompts": self.table[row]}


@dataclass(frozen=True, eq=False)
class Studio:
    """All that images are made and judged with."""

    painter: Painter
    judge: Judge
    digits: Digits
    """To train on."""

    @property
    def pipe(self) -> Any:
        """The base pipeline."""
        return self.painter.pipe

    def unet(self) -> Any:
        """A copy of the base model's."""
        return deepcopy(self.pipe.unet)

    def denoiser(self) -> Denoiser:
        """Over a copy of the base model's UNet."""
        return Denoiser(self.unet(), self.pipe.scheduler)

    def images(self, style: str) -> StyleImages:
        """To train on."""
        return StyleImages(self.digits, style, self.pipe)

    def score(self, style: str, images: Tensor) -> float:
        """Percent of the images that show the right digit in the right style."""
        return judges.verdict(self.judge, images, self.painter.labels, style).both


def open_studio(data: Path, size: Size, cache: Path) -> Studio:
    """The base model and the classifiers, trained where they are not in the cache."""
    painter = Painter(base(data, size, cache), size)
    digits = read(data, "train").first(size.images)
    return Studio(painter, judges.trained(data, size, cache), digits)


def plain_unet(model: Any) -> Any:
    """The UNet with an adapter's update in its weights (a copy: it is faster than beside them)."""
    if isinstance(model, PeftModel):
        return deepcopy(model).merge_and_unload().unet
    return model.unet
