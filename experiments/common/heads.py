"""A classification head that starts from what is best on the frozen base model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Head(nn.Linear):
    """A linear classifier on standardised features."""

    mean: Tensor
    """float32 [width], of the base model's features on the task's training data."""
    deviation: Tensor
    """float32 [width]."""

    def __init__(self, features: Tensor, classes: int) -> None:
        super().__init__(features.shape[1], classes)
        self.register_buffer("mean", features.mean(0))
        deviation = features.std(0)
        # A feature that is dead on these examples (ReLU) may wake up in training.
        dead = deviation < 1e-3 * deviation.max()
        self.register_buffer("deviation", deviation.where(~dead, deviation.max()))
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        return super().forward((pooled.float() - self.mean) / self.deviation)


def train_head(features: Tensor, labels: Tensor, classes: int, seed: int) -> Head:
    """The head alone, on the base model's features: where every method starts from.

    Args:
        features: float32 [examples, width].
        labels: int64 [examples].
    """
    head = Head(features, classes)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = 600
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        rows = torch.randint(len(features), (256,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(features[rows]), labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return head
