"""A head that starts from what is best on the frozen base model: where every method starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of a head's outputs and the labels."""


class Head(nn.Linear):
    """A linear map of standardised features, which begins as zero.

    Args:
        features: float32 [examples, width], of the base model on the task's training data.
        outputs: of the head.
        margin: is added to every deviation; None: features that are dead on these examples (ReLU)
            and may wake up in training get the largest deviation instead.
    """

    mean: Tensor
    """float32 [width], of the features."""
    deviation: Tensor
    """float32 [width]."""

    def __init__(self, features: Tensor, outputs: int, margin: float | None = None) -> None:
        super().__init__(features.shape[1], outputs)
        deviation = features.std(0)
        if margin is None:
            dead = deviation < 1e-3 * deviation.max()
            deviation = deviation.where(~dead, deviation.max())
        else:
            deviation = deviation + margin
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("deviation", deviation)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        return super().forward((pooled.float() - self.mean) / self.deviation)


@dataclass(frozen=True)
class HeadTraining:
    """How a head is trained: steps of 256 examples."""

    steps: int = 600
    decay: float = 1e-2
    """Of the weights."""
    loss: Loss = nn.functional.cross_entropy
    """Of outputs and labels."""


def train_head(
    head: Head, features: Tensor, labels: Tensor, seed: int, training: HeadTraining | None = None
) -> Head:
    """Train the head alone, in place, on the base model's features.

    Args:
        head: begins anywhere.
        features: float32 [examples, width].
        labels: [examples, ...].
        seed: of the order of the examples.
        training: how.
    """
    how = training or HeadTraining()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=how.decay)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=how.steps)
    for _ in range(how.steps):
        rows = torch.randint(len(features), (256,), generator=generator)
        optimizer.zero_grad()
        torch.autograd.backward(how.loss(head(features[rows]), labels[rows]))
        optimizer.step()
        schedule.step()
    return head
