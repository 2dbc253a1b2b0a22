"""How much of everything the experiment has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    train: int
    """Examples of a task, at most, before those seen in a mirror."""
    test: int
    steps: int
    batch_size: int
    side: int
    """Pixels of an image that goes into the MobileNet."""
    blocks: int
    """Of MobileNet's 13 those that are frozen and computed once."""
    layers: int
    """Of the ViT's six, likewise."""
    pretraining: int
    """Steps of the ViT's own training."""
    pretrained_on: int
    """Images of that, at most."""
    head_steps: int = 600
    """Of the head alone, from which all methods start."""


FULL = Size(
    train=1000,
    test=200,
    steps=300,
    batch_size=32,
    side=64,
    blocks=6,
    layers=3,
    pretraining=600,
    pretrained_on=5000,
)
QUICK = Size(
    train=48,
    test=24,
    steps=4,
    batch_size=8,
    side=32,
    blocks=11,
    layers=5,
    pretraining=2,
    pretrained_on=64,
    head_steps=9,
)
"""For tests: nothing is learned. The first step warms up at rate 0, and after one or two more, the
LoRAs would span fewer directions than their ranks."""
