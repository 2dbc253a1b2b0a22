"""Learning rates tried on one task: percent of the examples that its job is scored on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from experiments.common.transfer import core_curve, lora_curve
from sharespace import Share
from sharespace.baselines import Settings, TaskJob

Scores = dict[str, dict[str, float]]
"""``"head"``, ``"lora"``, ``"core"`` -> learning rate -> score."""


def by_rate(
    job: TaskJob,
    numbers: Settings,
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


def _rated(numbers: Settings, rate: float) -> Settings:
    """With another rate of LoRA and core."""
    return replace(
        numbers,
        lora=replace(numbers.lora, learning_rate=rate),
        coefficients=replace(numbers.coefficients, learning_rate=rate),
    )
