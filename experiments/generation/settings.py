"""The experiment's numbers: base model, adapters, stream, and how everything is trained.

What they were chosen by is in README.md ("How the numbers were chosen").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from experiments.harness.numbers import Numbers

TARGETS = ("q_proj", "k_proj", "v_proj")
"""Adapted in every layer, as the Lots-of-LoRAs adapters do."""
RANK = 8
ALPHA = 16
Start = Literal["own", "same"]
"""Of the adapters' A: a random one for each (PEFT's default), or one for all."""


@dataclass(frozen=True)
class Pretraining:
    """The base model and its training."""

    vocabulary: int = 2048
    hidden: int = 192
    intermediate: int = 512
    layers: int = 4
    heads: int = 6
    steps: int = 2000
    batch_size: int = 64
    """Of these, a quarter plain text."""
    learning_rate: float = 2e-3
    length: int = 72
    """Tokens of the longest example."""
    instructions: int = 40_000
    """Instruction-like examples, drawn once."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    pretraining: Pretraining
    clinc: int
    """Tasks of so many kinds."""
    banking: int
    dbpedia: int
    rules: int
    train: int
    """Examples of a task, at most."""
    test: int
    batches: int
    """Of adapters, merged one after the other."""
    steps: int
    """Of an adapter's training."""
    batch_size: int
    together: int
    """Adapters trained in one run."""
    dimensions: tuple[int, ...]
    """k: caps of the subspaces that are tried."""
    learn_steps: int
    """Of each task in the learning stream."""


FULL = Size(
    pretraining=Pretraining(),
    clinc=34,
    banking=18,
    dbpedia=16,
    rules=28,
    train=320,
    test=32,
    batches=10,
    steps=80,
    batch_size=8,
    together=25,
    dimensions=(12, 24, 48),
    learn_steps=150,
)
"""k = 12 of d = 192 is 1/16, as 256 of 4096; k = 24 of 100 x 8 columns is 1/33, as 256 of
500 x 16 (1/31)."""
QUICK = Size(
    pretraining=Pretraining(
        vocabulary=320,
        hidden=32,
        intermediate=64,
        layers=2,
        heads=2,
        steps=4,
        batch_size=8,
        instructions=200,
    ),
    clinc=2,
    banking=1,
    dbpedia=1,
    rules=2,
    train=24,
    test=4,
    batches=3,
    steps=2,
    batch_size=4,
    together=4,
    dimensions=(4,),
    learn_steps=2,
)
"""For tests: nothing is learned."""

LORA_RATE = 4e-3
CORE_RATE = 0.12
LEARN = (
    "rule-first-3",
    "dbpedia-0",
    "banking77-0",
    "clinc150-0",
    "rule-word-3",
    "banking77-1",
    "clinc150-1",
    "rule-rotate",
)
"""The learning stream: the first three as own LoRAs, the others in the subspace."""
LEARN_QUICK = ("rule-last-2", "dbpedia-0", "banking77-0", "agnews")


def numbers(size: Size) -> Numbers:
    """What the learning stream trains with."""
    return Numbers(
        steps=size.learn_steps,
        batch_size=size.batch_size,
        lora=LORA_RATE,
        core=CORE_RATE,
        p=12,
        phi=6,
        targets=TARGETS,
        rank=RANK,
        alpha=ALPHA,
        head=None,  # There are no heads.
    )
