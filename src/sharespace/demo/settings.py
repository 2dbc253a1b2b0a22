"""The demo's numbers: sizes of the model, of the subspace, and how everything is trained."""

from __future__ import annotations

from dataclasses import dataclass

from sharespace.learn import Training


@dataclass(frozen=True)
class Settings:
    """One run."""

    hidden: int
    layers: int
    heads: int
    train_images: int
    """The rest of the 1797 images is for testing."""
    tasks: int
    built_from: int
    """Tasks that come as finished adapters; the others are learned in the subspace."""
    lora_rank: int
    k: int
    """Subspace dimension of every layer and side, and the cap of the merges."""
    p: int
    """Pseudo-rank of the tasks learned in the subspace."""
    phi: int
    """Temporary directions a side."""
    pretrain: Training
    head: Training
    lora: Training
    subspace: Training


FULL = Settings(
    hidden=64,
    layers=4,
    heads=4,
    train_images=1200,
    tasks=6,
    built_from=4,
    lora_rank=8,
    k=16,
    p=4,
    phi=1,
    pretrain=Training(steps=400, learning_rate=2e-3, weight_decay=0.05, cpu=True),
    head=Training(steps=150, learning_rate=2e-2, cpu=True),
    lora=Training(steps=200, learning_rate=1e-2, cpu=True),
    subspace=Training(steps=200, learning_rate=1e-2, cpu=True),
)

QUICK = Settings(
    hidden=16,
    layers=1,
    heads=2,
    train_images=1500,
    tasks=3,
    built_from=2,
    lora_rank=2,
    k=4,
    p=2,
    phi=1,
    pretrain=Training(steps=150, learning_rate=1e-2, batch_size=32, cpu=True),
    head=Training(steps=20, learning_rate=2e-2, batch_size=32, cpu=True),
    lora=Training(steps=40, learning_rate=2e-2, batch_size=32, cpu=True),
    subspace=Training(steps=40, learning_rate=4e-2, batch_size=32, cpu=True),
)
"""Too short to learn well: for tests."""
