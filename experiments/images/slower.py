"""One LoRA in sequence at a lower rate: LoRA's rate, chosen for one task, is too much for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.common.tables import Results, mean_of

METHOD = "sequential_lora"


def with_slower(run: dict[str, Any], slower: Sequence[Results]) -> dict[str, Any]:
    """The results with the better of both runs of the method, by its mean at the end.

    Args:
        run: a results file.
        slower: results files of the same streams and seeds with another rate.
    """
    both = [found for found in (run, *slower) if METHOD in found["methods"] and _same(found, run)]
    if not both:
        return run
    best = max(both, key=lambda found: mean_of(found, METHOD))
    return {**run, "methods": {**run["methods"], METHOD: best["methods"][METHOD]}}


def slower_note(runs: Sequence[Results], slower: Sequence[Results]) -> str:
    """A sentence a stream that has both."""
    lines = []
    for run in runs:
        for found in (f for f in slower if _same(f, run) and METHOD in run["methods"]):
            rates = [x["settings"]["lora"]["learning_rate"] for x in (run, found)]
            means = [mean_of(x, METHOD) for x in (run, found)]
            lines.append(
                f"{METHOD} on {run['order']} (seed {run['environment']['seed']}): mean "
                f"{means[0]:.2f} at LoRA's rate {rates[0]:g}, {means[1]:.2f} at {rates[1]:g}; the "
                "better one is shown."
            )
    return "\n".join([*lines, ""])


def _same(found: Results, run: Results) -> bool:
    """Of the same stream and seed."""
    seeds = (found["environment"]["seed"], run["environment"]["seed"])
    return bool(found["order"] == run["order"] and seeds[0] == seeds[1])
