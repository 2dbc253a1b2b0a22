"""The experiment's numbers: the styles, the base model, and how everything is trained.

What they were chosen by is in README.md ("How the numbers were chosen").
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.harness.numbers import Numbers

TASKS = ("outlined", "striped", "bold", "embossed", "framed", "blurred", "rotated")
"""Styles, in the order of the stream. The first three come as finished LoRAs, the others are
learned from images, one by one."""
SLOW = ("inverted", "embossed", "framed", "blurred", "rotated")
"""Styles that are trained for longer, by all methods: those that Share learns itself."""
INITIAL = 3
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]
"""Attention and the convolutions of all residual blocks."""
SIDE = 24
"""Pixels of an image's side."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    channels: tuple[int, int]
    """Of the UNet's two resolutions."""
    pretraining: int
    """Steps of the base model."""
    pretraining_batch: int
    judges: int
    """Steps of the two classifiers."""
    images: int
    """Training images of a style."""
    steps: int
    batch_size: int
    slow_steps: int
    """Of the styles that take longer."""
    scored: int
    """Images that are generated for one score."""
    denoising: int
    """Steps of the sampler."""
    guidance: float
    """Classifier-free guidance of all images."""


FULL = Size(
    channels=(32, 64),
    pretraining=1500,
    pretraining_batch=64,
    judges=2000,
    images=4000,
    steps=80,
    batch_size=32,
    slow_steps=200,
    scored=40,
    denoising=8,
    guidance=2.0,
)
QUICK = Size(
    channels=(8, 16),
    pretraining=2,
    pretraining_batch=8,
    judges=2,
    images=40,
    steps=2,
    batch_size=8,
    slow_steps=2,
    scored=10,
    denoising=2,
    guidance=2.0,
)
"""For tests: nothing is learned."""


def steps(style: str, size: Size) -> int:
    """Of a style's training."""
    return size.slow_steps if style in SLOW else size.steps


def numbers(size: Size) -> Numbers:
    """What is trained with."""
    return Numbers(
        steps=size.steps,
        batch_size=size.batch_size,
        lora=4e-3,
        core=1e-2,
        p=24,
        phi=12,
        targets=TARGETS,
        initial=INITIAL,
        alpha=8,
        head=None,  # There are no heads.
        finetune=False,
        osf=None,
    )
