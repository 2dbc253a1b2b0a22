"""The experiment's numbers: categories, views, bins, and how everything is trained.

What they were chosen by is in README.md ("How the numbers were chosen").
"""

from __future__ import annotations

from dataclasses import dataclass, field

from experiments.pose.model import AngleBins
from experiments.pose.views import Range
from sharespace.compare import ComparisonSettings
from sharespace.learn import TaskMethod, TrainingSettings

ORDERS = {
    "animals-first": (
        "spot",
        "suzanne",
        "stanford-bunny",
        "cow",
        "teapot",
        "beetle-alt",
        "rocker-arm",
        "fandisk",
    ),
    "things-first": (
        "fandisk",
        "rocker-arm",
        "beetle-alt",
        "teapot",
        "cow",
        "stanford-bunny",
        "suzanne",
        "spot",
    ),
}
"""The first three come as adapters, the others are learned from data, one by one."""
INITIAL = 3
GROUPS: dict[str, tuple[tuple[float, float, float], int]] = {}
"""Category -> axis and number of turns of its rotational symmetry: none of these meshes has one
(README.md); what is put here is scored so."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    train: int
    """Views of a category."""
    test: int
    pixels: int
    """Side of the images."""
    lower: int
    """Layers of the backbone that are frozen and computed once; each block has two."""
    cells: int
    """Side of the grid that the head sees; 1: the mean over the image."""
    steps: int
    batch_size: int
    head_steps: int = 400
    """Of the head alone, from which all methods start."""
    limits: Range = field(default_factory=Range)
    bins: AngleBins = field(default_factory=AngleBins)


FULL = Size(train=1200, test=250, pixels=96, lower=10, cells=1, steps=400, batch_size=32)
QUICK = Size(
    train=24,
    test=8,
    pixels=48,
    lower=22,
    cells=1,
    steps=2,
    batch_size=8,
    head_steps=10,
    limits=Range(apart=2.0),
)
"""For tests: nothing is learned."""


def settings(size: Size, seed: int) -> ComparisonSettings:
    """All methods' numbers."""

    def training(rate: float, steps: int = size.steps) -> TrainingSettings:
        return TrainingSettings(
            max_steps=steps,
            learning_rate=rate,
            head_learning_rate=2e-3,
            per_device_train_batch_size=size.batch_size,
            weight_decay=0.0,
            use_cpu=True,
            lr_scheduler_type="cosine",
        )

    return ComparisonSettings(
        # The jobs' heads are trained already (model.train_head): this is as good as nothing.
        head=training(1e-6, steps=1),
        lora=training(1.2e-2),
        coefficients=training(4e-2),
        finetune=training(2e-3, steps=max(size.steps // 2, 1)),
        targets=[f"layer.{i}.convolution" for i in range(size.lower, 26) if i % 2],
        rank=8,
        lora_alpha=16,
        k=INITIAL * 8 + 5 * 16,  # room for three LoRAs and five learned categories
        method=TaskMethod(p=32, phi=16, form="core", directions="gradient"),
        initial=INITIAL,
        seed=seed,
    )
