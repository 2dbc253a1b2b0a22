"""Tables of the learning rates that were tried, and of the sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def tune_table(record: Mapping[str, Any]) -> str:
    """Percent of the held-out training examples, by learning rate."""
    tasks = list(record["scores"])
    lines = [
        "## Learning rates",
        "",
        f"Percent of {record['held_out']} training examples that were held out (`tune`, seed 0).",
        "",
        f"| what is trained, rate | {' | '.join(tasks)} |",
        "|---|" + "---|" * len(tasks),
    ]
    for kind, name in (("lora", "LoRA"), ("core", "a core in the subspace")):
        for rate in record["scores"][tasks[0]][kind]:
            cells = [f"{record['scores'][task][kind][rate]:.1f}" for task in tasks]
            lines.append(f"| {name}, {float(rate):g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def sweep_table(record: Mapping[str, Any]) -> str:
    """Percent of the test examples, one number changed at a time, and LoRA's gain kept."""
    tasks = list(record["tasks"])
    lines = [
        "## Where learning in the subspace breaks",
        "",
        "One task at a time in the subspace of three own LoRAs (`sweep`, seed 0): percent of the "
        "test examples and, in brackets, the part of LoRA's gain over the head alone. Nothing was "
        "chosen by these figures.",
        "",
        f"| what is changed | {' | '.join(tasks)} | gain kept, mean | trained a module |",
        "|---|" + "---|" * (len(tasks) + 2),
    ]
    ends = [(record["tasks"][t]["head only"], record["tasks"][t]["own LoRA"]) for t in tasks]
    lines.append(f"| head only | {' | '.join(f'{head:.1f}' for head, _ in ends)} | 0% | 0 |")
    lines.append(f"| own LoRA | {' | '.join(f'{own:.1f}' for _, own in ends)} | 100% | 6,144 |")
    known = [set(record["tasks"][task]) for task in tasks]
    for name in record["tasks"][tasks[0]]:
        if name not in ("head only", "own LoRA") and all(name in k for k in known):
            lines.append(_sweep_row(record, name))
    return "\n".join(lines) + "\n"


def _sweep_row(record: Mapping[str, Any], name: str) -> str:
    cells, reached, possible, trained = [], 0.0, 0.0, 0.0
    for found in record["tasks"].values():
        score, head = found[name]["score"], found["head only"]
        gain = found["own LoRA"] - head
        cells.append(f"{score:.1f} ({(score - head) / gain:.0%})")
        reached, possible = reached + score - head, possible + gain
        trained = found[name]["trained a module"]
    return f"| {name} | {' | '.join(cells)} | {reached / possible:.0%} | {trained:,.0f} |"
