"""The experiment's numbers: tasks, streams, and how everything is trained.

What they were chosen by is in README.md ("How the numbers were chosen").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.images.sets import Source

from sharespace.compare import ComparisonSettings
from sharespace.learn import TaskMethod, TrainingSettings

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
"""Base -> stream -> its tasks in order. Of each the first ``INITIAL`` begin the subspace as own
LoRAs, the others are learned from data, one by one."""
INITIAL = 3


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
    steps=2,
    batch_size=8,
    side=32,
    blocks=11,
    layers=5,
    pretraining=2,
    pretrained_on=64,
)
"""For tests: nothing is learned."""


@dataclass(frozen=True)
class Numbers:
    """What differs from base to base."""

    p: int
    phi: int
    lora: float
    """Learning rate."""
    core: float
    """Learning rate."""


NUMBERS = {
    "mobilenet": Numbers(p=32, phi=16, lora=8e-3, core=2e-2),
    "vit": Numbers(p=10, phi=5, lora=4e-3, core=4e-2),
}
RANK = 8


def settings(
    base: str, size: Size, seed: int, tasks: int, targets: tuple[str, ...], bf16: bool
) -> ComparisonSettings:
    """All methods' numbers.

    Args:
        base: a name of ``NUMBERS``.
        tasks: of the stream; the cap k has room for all of them, so that no merge cuts anything.
        targets: modules that are adapted.
        bf16: train under autocast.
    """
    chosen = NUMBERS[base]

    def training(rate: float, steps: int = size.steps) -> TrainingSettings:
        return TrainingSettings(
            max_steps=steps,
            learning_rate=rate,
            head_learning_rate=1e-3,
            per_device_train_batch_size=size.batch_size,
            weight_decay=0.0,
            use_cpu=True,
            bf16=bf16,
            lr_scheduler_type="cosine",
        )

    return ComparisonSettings(
        # The jobs' heads are trained already (heads.train_head): this is as good as nothing.
        head=training(1e-6, steps=1),
        lora=training(chosen.lora),
        coefficients=training(chosen.core),
        finetune=training(2e-3, steps=max(size.steps // 2, 1)),
        osf=training(1e-4),
        targets=list(targets),
        rank=RANK,
        lora_alpha=16,
        k=INITIAL * RANK + max(tasks - INITIAL, 0) * chosen.phi,
        method=TaskMethod(p=chosen.p, phi=chosen.phi, form="core", directions="gradient"),
        initial=INITIAL,
        seed=seed,
    )
