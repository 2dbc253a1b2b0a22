"""Learning rates and sizes tried on one task: percent of the examples that its job is scored on."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace

from experiments.common.transfer import core_curve, lora_curve
from sharespace import Share
from sharespace.compare import ComparisonSettings, TaskJob

Scores = dict[str, dict[str, float]]
"""``"head"``, ``"lora"``, ``"core"`` -> learning rate -> score."""


def by_rate(
    job: TaskJob,
    numbers: ComparisonSettings,
    share: Share | None,
    steps: int,
    *,
    lora: Iterable[float],
    core: Iterable[float],
) -> Scores:
    """The head alone, own LoRA and a core at each rate.

    Args:
        job: scored on held-out examples.
        numbers: all but the rates.
        share: the core is trained in its subspace; None: no core is.
        steps: of each training.
    """
    found: Scores = {"head": {"": job.score(job.model())}}
    found["lora"] = {
        str(rate): lora_curve(job, _rated(numbers, rate), steps).scores[-1] for rate in lora
    }
    if share is not None:
        found["core"] = {
            str(rate): core_curve(job, share, _rated(numbers, rate), steps).scores[-1]
            for rate in core
        }
    return found


def add_options(
    parser: argparse.ArgumentParser, lora: Sequence[float], core: Sequence[float]
) -> None:
    """What the scripts that tune can try, with the rates that they try by themselves."""
    parser.add_argument("--lora", type=float, nargs="*", default=list(lora), help="rates")
    parser.add_argument("--ranks", type=int, nargs="+", help="of LoRA; default: the settings'")
    parser.add_argument("--core", type=float, nargs="*", default=list(core), help="rates")
    parser.add_argument(
        "--sizes",
        type=_size,
        nargs="+",
        metavar="P,PHI",
        help="of the core: directions a side, and how many of them are new; default: the settings'",
    )


def by_size(
    job: TaskJob,
    numbers: ComparisonSettings,
    share: Share | None,
    steps: int,
    chosen: argparse.Namespace,
) -> Scores:
    """The head alone, and each rank of LoRA and size of the core at each rate.

    Args:
        job: scored on held-out examples.
        numbers: all but what is tried.
        share: the cores are trained in its subspace; None: no core is.
        steps: of each training.
        chosen: what ``add_options`` reads.
    """
    found: Scores = {}
    for rank in chosen.ranks or [numbers.rank]:
        tried = by_rate(job, replace(numbers, rank=rank), None, steps, lora=chosen.lora, core=())
        found |= {"head": tried["head"], f"lora, rank {rank}": tried["lora"]}
    for p, phi in chosen.sizes or [(numbers.method.p, numbers.method.phi)]:
        sized = replace(numbers, method=replace(numbers.method, p=p, phi=phi))
        tried = by_rate(job, sized, share, steps, lora=(), core=chosen.core)
        found |= {f"core, p {p}, phi {phi}": tried.get("core", {})}
    return found


def _size(text: str) -> tuple[int, int]:
    p, phi = text.split(",")
    return int(p), int(phi)


def _rated(numbers: ComparisonSettings, rate: float) -> ComparisonSettings:
    """With another rate of LoRA and core."""
    return replace(
        numbers,
        lora=replace(numbers.lora, learning_rate=rate),
        coefficients=replace(numbers.coefficients, learning_rate=rate),
    )
