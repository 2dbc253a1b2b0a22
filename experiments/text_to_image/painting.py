"""Images by the pipeline: the same prompts and the same noise for every method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.text_to_image.digits import NAMES, prompt
from experiments.text_to_image.settings import SIDE, Size

_BATCH = 50


@dataclass(frozen=True, eq=False)
class Painter:
    """Makes images with a UNet, everything else being the base pipeline's."""

    pipe: Any
    size: Size

    @property
    def labels(self) -> Tensor:
        """What the prompts ask for: the digits in turn."""
        return torch.arange(self.size.scored) % len(NAMES)

    @torch.no_grad()
    def paint(self, unet: Any, noise: int = 0) -> Tensor:
        """Images in [-1, 1], [scored, 1, side, side].

        Args:
            unet: plain, or with adapters in it.
            noise: seed of what the images start from; the same seed gives the same start.
        """
        generator = torch.Generator().manual_seed(1000 + noise)
        start = torch.randn(self.size.scored, 4, SIDE // 2, SIDE // 2, generator=generator)
        before, self.pipe.unet = self.pipe.unet, unet.eval()
        try:
            parts = zip(torch.split(self.labels, _BATCH), torch.split(start, _BATCH), strict=True)
            return torch.cat([self._batch(labels, latents) for labels, latents in parts])
        finally:
            self.pipe.unet = before

    def _batch(self, labels: Tensor, latents: Tensor) -> Tensor:
        output = self.pipe(
            prompt=[prompt(label) for label in labels.tolist()],
            latents=latents,
            num_inference_steps=self.size.denoising,
            guidance_scale=self.size.guidance,
            output_type="pt",
        )
        images: Tensor = output.images.float() * 2 - 1
        return images


def save(path: Path, images: Tensor) -> None:
    """As uint8, [count, side, side]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, ((images[:, 0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy())


def load(path: Path) -> Tensor:
    """Images in [-1, 1], [count, 1, side, side]."""
    return torch.from_numpy(np.load(path))[:, None].float() / 127.5 - 1
