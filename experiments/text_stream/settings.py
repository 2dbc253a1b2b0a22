"""The experiment's numbers: tasks, orders, and how everything is trained.

What they were chosen by is in README.md ("How the numbers were chosen").
"""

from __future__ import annotations

from dataclasses import dataclass

from sharespace.compare import ComparisonSettings
from sharespace.learn import TaskMethod, TrainingSettings

ORDERS = {
    "glue-first": ("qnli", "mnli", "boolq", "amazon5", "yelp5", "imdb", "wic"),
    "reviews-first": ("yelp5", "amazon5", "mnli", "imdb", "qnli", "boolq", "wic"),
}
"""The first three of each come as adapters, the others are learned from data, one by one. The
second begins as order 6 of O-LoRA's long stream does (yelp, amazon, mnli, ...)."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    lower: int
    """Layers of the encoder that are frozen and computed once."""
    length: int
    """Tokens of the longest example."""
    train: int
    """Examples of a task, at most."""
    test: int
    steps: int
    batch_size: int


FULL = Size(lower=3, length=64, train=4000, test=1200, steps=300, batch_size=16)
QUICK = Size(lower=5, length=16, train=48, test=24, steps=3, batch_size=8)
"""For tests: nothing is learned."""


def settings(size: Size, seed: int) -> ComparisonSettings:
    """All methods' numbers; learning rates were tuned for each on seed 0."""

    def training(rate: float, steps: int = size.steps) -> TrainingSettings:
        return TrainingSettings(
            max_steps=steps,
            learning_rate=rate,
            head_learning_rate=1e-3,
            per_device_train_batch_size=size.batch_size,
            weight_decay=0.0,
            use_cpu=True,
            bf16=True,
            arguments={"train_sampling_strategy": "group_by_length"},
            lr_scheduler_type="cosine",
        )

    return ComparisonSettings(
        # The jobs' heads are trained already (model.train_head): this is as good as nothing.
        head=training(1e-6, steps=1),
        lora=training(4e-3),
        coefficients=training(3e-2),
        finetune=training(2e-3, steps=max(size.steps // 2, 1)),
        held_out=0.15,
        osf=training(1e-4),
        targets=["query", "value"],
        rank=8,
        lora_alpha=16,
        k=48,
        method=TaskMethod(p=17, phi=6, form="core", directions="gradient"),
        initial=3,
        seed=seed,
    )
