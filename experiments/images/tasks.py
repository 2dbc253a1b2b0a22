"""The tasks and the streams that are made of them."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.images.sets import Source

ANIMALS = (3, 15, 19, 21, 31, 43, 55, 65, 75, 97)
"""Bear, camel, cattle, chimpanzee, elephant, lion, otter, rabbit, skunk, wolf."""
THINGS = (5, 9, 13, 17, 25, 37, 39, 61, 87, 89)
"""Bed, bottle, bus, castle, couch, house, keyboard, plate, television, tractor."""
PRETRAINED = tuple(range(0, 100, 2))
"""Classes of CIFAR-100 that the small ViT is pretrained on; its streams have the others only."""


def _cifar(*classes: int) -> Source:
    return Source("cifar100", classes=classes, flips=True)


TASKS: Mapping[str, Source] = {
    **{f"cifar-{i}": _cifar(*range(10 * i, 10 * i + 10)) for i in range(10)},
    **{f"odd-{i}": _cifar(*range(20 * i + 1, 20 * i + 20, 2)) for i in range(5)},
    "animals": _cifar(*ANIMALS),
    "things": _cifar(*THINGS),
    "mnist": Source("mnist"),
    "mnist-noisy": Source("mnist", change="noisy"),
    "fashion": Source("fashion_mnist", flips=True),
    "fashion-rotated": Source("fashion_mnist", change="rotated"),
    "fashion-inverted": Source("fashion_mnist", change="inverted", flips=True),
    "korean": Source("omniglot", alphabet="Korean"),
}

_FIVE = (
    "mnist",
    "animals",
    "fashion",
    "fashion-rotated",
    "korean",
    "mnist-noisy",
    "things",
    "fashion-inverted",
)
STREAMS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "mobilenet": {
        "split-cifar": tuple(f"cifar-{i}" for i in range(10)),
        "split-cifar-backwards": tuple(f"cifar-{i}" for i in reversed(range(10))),
        "five-sets": _FIVE,
    },
    "vit": {"split-cifar-odd": tuple(f"odd-{i}" for i in range(5)), "five-sets": _FIVE},
}
"""Base -> stream -> its tasks in order. Of each the first three begin the subspace as own LoRAs,
the others are learned from data, one by one."""
