"""Settings to try by name: cores and LoRAs with their rates and steps."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


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


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--core P PHI RATE STEPS`` and ``--lora RANK RATE STEPS``, as often as wanted."""
    core, lora = ("P", "PHI", "RATE", "STEPS"), ("RANK", "RATE", "STEPS")
    parser.add_argument("--core", nargs=4, action="append", metavar=core, default=[])
    parser.add_argument("--lora", nargs=3, action="append", metavar=lora, default=[])


def trials(chosen: argparse.Namespace) -> list[Trial]:
    """What was asked for."""
    cores = [Trial(float(r), int(s), p=int(p), phi=int(phi)) for p, phi, r, s in chosen.core]
    return [*(Trial(float(r), int(s), rank=int(n)) for n, r, s in chosen.lora), *cores]
