"""ComparisonSettings to try by name: cores and LoRAs with their rates and steps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sharespace.compare import ComparisonSettings


@dataclass(frozen=True)
class Trial:
    """One setting: a core, or where p is None a LoRA."""

    rate: float
    steps: int
    rank: int = 0
    p: int | None = None
    phi: int = 0

    @property
    def label(self) -> str:
        """Its key in a results file."""
        kind = f"lora rank={self.rank}" if self.p is None else f"core p={self.p} phi={self.phi}"
        return f"{kind} rate={self.rate:g} steps={self.steps}"

    def applied(self, settings: ComparisonSettings) -> ComparisonSettings:
        """An experiment's numbers with those of this trial."""
        if self.p is None:
            scale = settings.alpha / settings.rank
            training = replace(settings.lora, learning_rate=self.rate, max_steps=self.steps)
            return replace(settings, lora=training, rank=self.rank, lora_alpha=scale * self.rank)
        training = replace(settings.coefficients, learning_rate=self.rate, max_steps=self.steps)
        method = replace(settings.method, p=self.p, phi=self.phi)
        return replace(settings, coefficients=training, method=method)


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--core P PHI RATE STEPS`` and ``--lora RANK RATE STEPS``, as often as wanted."""
    core, lora = ("P", "PHI", "RATE", "STEPS"), ("RANK", "RATE", "STEPS")
    append: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument("--core", nargs=4, metavar=core, dest="cores", **append)
    parser.add_argument("--lora", nargs=3, metavar=lora, dest="loras", **append)


def asked_for(options: argparse.Namespace) -> list[Trial]:
    """What the command line names."""
    cores = [Trial(float(r), int(s), p=int(p), phi=int(phi)) for p, phi, r, s in options.cores]
    return [*(Trial(float(r), int(s), rank=int(n)) for n, r, s in options.loras), *cores]


def by_rate(
    steps: int, lora: tuple[int, Sequence[float]], core: tuple[int, int, Sequence[float]]
) -> list[Trial]:
    """A LoRA of one rank and a core of one size, each at several rates.

    Args:
        steps: of each training.
        lora: rank and rates.
        core: p, phi and rates.
    """
    loras = [Trial(rate, steps, rank=lora[0]) for rate in lora[1]]
    return [*loras, *(Trial(rate, steps, p=core[0], phi=core[1]) for rate in core[2])]
