"""Methods that train one LoRA on all tasks, at a lower rate: LoRA's own, chosen for one fresh
LoRA and one task, is too much for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.common.methods import ORDER_FREE
from experiments.common.tables import Results, mean_of

METHODS = ("joint_lora", "sequential_lora", "o_lora", "ewc", "replay")


def with_slower(run: dict[str, Any], slower: Sequence[Results]) -> dict[str, Any]:
    """The results with the better of both runs of each such method, by its mean at the end.

    Args:
        run: a results file.
        slower: results files of the same streams and seeds with another rate.
    """
    methods = dict(run["methods"])
    for name in METHODS:
        tried = _tried(run, slower, name)
        if tried:
            methods[name] = max(tried, key=lambda found: mean_of(found, name))["methods"][name]
    return {**run, "methods": methods}


def slower_table(runs: Sequence[Results], slower: Sequence[Results]) -> str:
    """Mean at the end of each such method, rate by rate; empty where there is nothing slower."""
    rows = []
    for run in runs:
        for name in METHODS:
            tried = _tried(run, slower, name)
            if any(found is not run for found in tried):
                said = "; ".join(f"{_rate(found):g}: {mean_of(found, name):.2f}" for found in tried)
                rows.append(f"| {run['order']} | {_seed(run)} | {name} | {said} |")
    if not rows:
        return ""
    return "\n".join(
        [
            "## Other learning rates",
            "",
            "Mean over the tasks at the end by LoRA's learning rate; all else shows the best.",
            "",
            "| stream | seed | method | rate: mean |",
            "|---|--:|---|---|",
            *rows,
            "",
        ]
    )


def _tried(run: Results, slower: Sequence[Results], method: str) -> list[Results]:
    """Results files of the run's seed and stream (tasks in any order, where it does not matter)
    that have the method."""
    again = [found for found in slower if _stream(found, method) == _stream(run, method)]
    return [found for found in (run, *again) if method in found["methods"]]


def _stream(found: Results, method: str) -> tuple[Any, int]:
    tasks = sorted(found["tasks"]) if method in ORDER_FREE else found["order"]
    return tasks, _seed(found)


def _rate(found: Results) -> float:
    return float(found["settings"]["lora"]["learning_rate"])


def _seed(found: Results) -> int:
    return int(found["environment"]["seed"])
