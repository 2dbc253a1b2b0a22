"""The two classifiers that look at images: which digit it is, and in which style.

Both are heads of one small convolutional network, trained on real digits in all styles. The
network's last hidden layer is the feature space in which distances are taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.text_to_image.digits import NAMES, Digits, read
from experiments.text_to_image.settings import SIDE, Size
from experiments.text_to_image.styles import STYLES, styled

RATE = 2e-3
_OF_EACH = 8
"""Images of each style in a batch."""
_SHIFT = 2
"""Pixels that training images are moved by, at most."""


class Judge(nn.Module):
    """Images [count, 1, side, side] in [-1, 1] -> logits of digits and of styles."""

    def __init__(self) -> None:
        super().__init__()
        # Blocks of 2 x 2 pixels as channels: four times as fast, and no worse here.
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        for before, after, stride in ((4, 32, 1), (32, 64, 2), (64, 64, 2)):
            layers += [nn.Conv2d(before, after, 3, padding=1, stride=stride), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Linear(64 * (SIDE // 8) ** 2, 128)
        self.digit = nn.Linear(128, len(NAMES))
        self.style = nn.Linear(128, len(STYLES))

    def features(self, images: Tensor) -> Tensor:
        """The last hidden layer, [count, 128]."""
        hidden: Tensor = self.hidden(self.trunk(images)).relu()
        return hidden

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.features(images)
        return self.digit(hidden), self.style(hidden)


@dataclass(frozen=True)
class Verdict:
    """Percent of the images."""

    prompt: float
    """That show what the prompt says."""
    style: float
    """That are in the style."""
    both: float
    """That are right in both."""


@torch.no_grad()
def verdict(judge: Judge, images: Tensor, labels: Tensor, style: str) -> Verdict:
    """What the classifiers say of images that should show these digits in this style."""
    digits, styles = judge(images)
    prompt = digits.argmax(1) == labels
    right = styles.argmax(1) == list(STYLES).index(style)
    parts = (prompt, right, prompt & right)
    return Verdict(*(100 * part.float().mean().item() for part in parts))


def trained(data: Path, size: Size, cache: Path) -> Judge:
    """The classifiers, from the cache where they are there."""
    digits = read(data, "train")
    judge = _untrained()
    file = cache / f"judges-{_key(digits, judge, size)}.pt"
    if not file.is_file():
        _train(judge, digits, size)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(judge.state_dict(), file)
    judge.load_state_dict(torch.load(file, weights_only=True))
    return judge.eval().requires_grad_(False)


def _untrained() -> Judge:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Judge()


def _key(digits: Digits, judge: Judge, size: Size) -> str:
    digest = hashlib.sha256(digits.images.numpy().tobytes())
    for name in STYLES:
        digest.update(styled(name, digits.images[:8]).contiguous().numpy().tobytes())
    for value in judge.state_dict().values():
        digest.update(value.numpy().tobytes())
    digest.update(repr((size.judges, RATE, _OF_EACH, _SHIFT)).encode())
    return digest.hexdigest()[:12]


def _train(judge: Judge, digits: Digits, size: Size) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, max(size.judges, 2))
    for _ in range(size.judges):
        images, labels, styles = _batch(digits, generator)
        digit_logits, style_logits = judge(images)
        loss = functional.cross_entropy(digit_logits, labels)
        loss = loss + functional.cross_entropy(style_logits, styles)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()


def _batch(digits: Digits, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images, digits and numbers of styles; all styles are in it."""
    rows = torch.randint(len(digits), (len(STYLES), _OF_EACH), generator=generator)
    images = [
        styled(name, _moved(digits.images[some], generator))
        for name, some in zip(STYLES, rows, strict=True)
    ]
    styles = torch.arange(len(STYLES)).repeat_interleave(_OF_EACH)
    return torch.cat(images), digits.labels[rows.flatten()], styles


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """A batch moved by a few pixels, black where nothing was."""
    down, right = torch.randint(-_SHIFT, _SHIFT + 1, (2,), generator=generator).tolist()
    padded = functional.pad(images, (_SHIFT,) * 4, value=-1.0)
    side = images.shape[-1]
    return padded[..., _SHIFT + down :, _SHIFT + right :][..., :side, :side]


def on_real_images(judge: Judge, data: Path) -> Mapping[str, Any]:
    """Style -> the classifiers' verdict on test digits in that style."""
    digits = read(data, "test")
    return {
        name: vars(verdict(judge, styled(name, digits.images), digits.labels, name))
        for name in STYLES
    }
