"""Tables and figures of all runs.

    python -m experiments.text_stream.summarise

Writes ``results/tables.md``, ``results/claims.json`` and ``docs/figures/text-stream-*.png``;
nothing is computed that is not in the results files.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.common.claims import write_claims
from experiments.common.figures import draw_order, draw_subspace
from experiments.common.runs import read
from experiments.common.tables import (
    Goals,
    goals_table,
    learned_table,
    main_table,
    numbers,
    spread,
)
from experiments.text_stream.claims import claims

HERE = Path(__file__).parent
FIGURES = HERE.parents[1] / "docs" / "figures"
INITIAL = 3
GOALS = Goals(score=0.99, gain=0.95, forgetting=0.5)
COMMAND = "python -m experiments.text_stream.summarise"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=HERE / "results" / "runs")
    parser.add_argument("--transfer", type=Path, default=HERE / "results" / "transfer")
    parser.add_argument("--sizes", type=Path, default=HERE / "results" / "sizes.json")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tables.md")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    chosen = parser.parse_args()
    runs, curves = read(chosen.runs), read(chosen.transfer)
    sections = [main_table(runs), learned_table(runs, INITIAL), goals_table(runs, GOALS)]
    if curves:
        sections.append(transfer_table(curves))
    chosen.out.write_text("\n".join(sections))
    found = claims(runs, chosen.sizes)
    write_claims(chosen.out.with_name("claims.json"), found, COMMAND)
    for order in dict.fromkeys(run["order"] for run in runs):
        mine = [run for run in runs if run["order"] == order]
        draw_order(mine, chosen.figures / f"text-stream-{order}.png")
    draw_subspace(runs[0], INITIAL, chosen.figures / "text-stream-subspace.png")


def transfer_table(curves: Sequence[Mapping[str, Any]]) -> str:
    """Steps until parts of what own LoRA reaches."""
    parts = (0.95, 1.0)
    names = list(curves[0]["curves"])
    lines = [
        "## Forward transfer",
        "",
        "Steps until a curve first reaches a part of own LoRA's last score, and until it reaches "
        "80 % of own LoRA's gain over the head alone; mean over the seeds that reach it (how "
        "many).",
        "",
        "| task | learned in | 95 % of score | 100 % of score | 80 % of gain | last score |",
        "|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(c["task"] for c in curves):
        mine = [c for c in curves if c["task"] == task]
        for name in names:
            cells = [steps(mine, name, partial(part_of_score, part)) for part in parts]
            cells.append(steps(mine, name, partial(part_of_gain, 0.8)))
            last = spread([c["curves"][name]["scores"][-1] for c in mine])
            where = name if name == "own LoRA" else f"subspace of {name} tasks"
            lines.append(f"| {task} | {where} | {' | '.join(cells)} | {last} |")
    return "\n".join(lines) + "\n"


def part_of_score(part: float, record: Mapping[str, Any]) -> float:
    return float(part * record["curves"]["own LoRA"]["scores"][-1])


def part_of_gain(part: float, record: Mapping[str, Any]) -> float:
    own = record["curves"]["own LoRA"]["scores"][-1]
    return float(record["head_only"] + part * (own - record["head_only"]))


def steps(
    records: Sequence[Mapping[str, Any]], name: str, wanted: Callable[[Mapping[str, Any]], float]
) -> str:
    """Mean of the first step that reaches what is wanted."""
    found = []
    for record in records:
        curve = record["curves"][name]
        both = zip(curve["steps"], curve["scores"], strict=True)
        found.append(next((s for s, x in both if x >= wanted(record)), None))
    reached = numbers(found)
    return (
        f"{fmean(reached):.0f} ({len(reached)}/{len(found)})"
        if reached
        else f"never ({len(found)})"
    )


if __name__ == "__main__":
    main()
