"""The styles: functions of images, float [count, 1, h, w] in [-1, 1], white on black."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

PLAIN = "plain"
"""No style: what the base model makes."""


def plain(images: Tensor) -> Tensor:
    return images


def inverted(images: Tensor) -> Tensor:
    """Black on white."""
    return -images


def bold(images: Tensor) -> Tensor:
    """Every stroke two pixels wider."""
    return functional.max_pool2d(images, 3, stride=1, padding=1)


def outlined(images: Tensor) -> Tensor:
    """Only the border of every stroke."""
    return bold(images) - (images + 1)


def striped(images: Tensor) -> Tensor:
    """Grey vertical stripes, two pixels wide, behind the digit."""
    stripes = torch.full_like(images, -1.0)
    columns = torch.arange(images.shape[-1])
    stripes[..., columns % 4 < 2] = -0.1
    return torch.maximum(images, stripes)


def embossed(images: Tensor) -> Tensor:
    """Lit from the upper left, grey where nothing changes."""
    moved = functional.pad(images, (2, 0, 2, 0), value=-1.0)[..., :-2, :-2]
    return (images - moved) / 2


def framed(images: Tensor) -> Tensor:
    """A white frame of two pixels."""
    framed_images = torch.ones_like(images)
    framed_images[..., 2:-2, 2:-2] = images[..., 2:-2, 2:-2]
    return framed_images


def blurred(images: Tensor) -> Tensor:
    """Out of focus: a Gaussian of 1.5 pixels."""
    offsets = torch.arange(-4, 5, dtype=images.dtype)
    weights = torch.exp(-(offsets**2) / (2 * 1.5**2))
    kernel = torch.outer(weights, weights)
    padded = functional.pad(images, (4, 4, 4, 4), value=-1.0)
    return functional.conv2d(padded, (kernel / kernel.sum())[None, None])


def rotated(images: Tensor) -> Tensor:
    """A quarter turn to the right."""
    return torch.rot90(images, -1, dims=(-2, -1))


STYLES: Mapping[str, Callable[[Tensor], Tensor]] = {
    style.__name__: style
    for style in (*(plain, inverted, outlined, striped, bold, embossed, framed, blurred, rotated),)
}
"""Name -> style; the first is none."""


def styled(name: str, images: Tensor) -> Tensor:
    """The images in a style, in [-1, 1]."""
    return STYLES[name](images).clamp(-1, 1)
