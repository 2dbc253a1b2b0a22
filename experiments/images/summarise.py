"""Tables, claims and figures of all runs.

    python -m experiments.images.summarise

Writes ``results/tables.md``, ``results/claims.json`` and ``docs/figures/images-*.png``; nothing is
computed that is not in the results files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common.claims import write_claims
from experiments.common.figures import draw_order
from experiments.common.runs import read
from experiments.common.sizes import read_sizes, size_table
from experiments.common.slower import slower_table, with_slower
from experiments.common.tables import Goals, Results, goals_table, learned_table, main_table
from experiments.common.transfer import transfer_table
from experiments.images.claims import claims
from experiments.images.pictures import draw_kinds, draw_transfer, kinds_table
from experiments.images.settings import INITIAL, STREAMS

HERE = Path(__file__).parent
FIGURES = HERE.parents[1] / "docs" / "figures"
GOALS = Goals(score=0.98, gain=0.9, forgetting=1.0)
TITLES = {"mobilenet": "MobileNet, 1x1 convolutions", "vit": "Small ViT, query and value"}
NEEDED = ("head_only", "per_task_lora", "share_strict")
"""Without these a results file is not finished, and is left out."""
COMMAND = "python -m experiments.images.summarise"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    chosen = parser.parse_args()
    groups = {base: finished(chosen.results / "runs" / base) for base in STREAMS}
    groups = {base: runs for base, runs in groups.items() if runs}
    slower = {base: read(chosen.results / "slower" / base) for base in groups}
    notes = {base: slower_table(runs, slower[base]) for base, runs in groups.items()}
    groups = {b: [with_slower(run, slower[b]) for run in runs] for b, runs in groups.items()}
    kinds = [k for base in groups for k in read(chosen.results / "kinds" / base)]
    curves = [c for base in groups for c in read(chosen.results / "transfer" / base)]
    for base, runs in groups.items():
        draw_base(base, runs, chosen.figures)
    parts = [section(base, runs, notes[base]) for base, runs in groups.items()]
    for base, runs in groups.items():
        sizes = size_table(runs, read_sizes(chosen.results / "sizes", base), INITIAL)
        parts.append(sizes.replace("trains\n", f"trains ({base})\n", 1))
    if kinds:
        parts.append(kinds_table(kinds))
        draw_kinds(kinds, chosen.figures / "images-kinds.png")
    if curves:
        parts.append(transfer_table(curves))
        draw_transfer(curves, chosen.figures / "images-transfer.png")
    (chosen.results / "tables.md").write_text("\n".join(parts))
    named = {TITLES[base]: runs for base, runs in groups.items()}
    write_claims(chosen.results / "claims.json", claims(named, kinds), COMMAND)


def finished(folder: Path) -> list[dict[str, Any]]:
    """Results files that have what every table needs."""
    return [run for run in read(folder) if all(n in run["methods"] for n in NEEDED)]


def section(base: str, runs: Sequence[Results], note: str) -> str:
    """Tables of one base; streams of the same tasks are one table."""
    lines = [f"# {TITLES[base]}", ""]
    for tasks in dict.fromkeys(frozenset(run["tasks"]) for run in runs):
        mine = [run for run in runs if frozenset(run["tasks"]) == tasks]
        named = ", ".join(dict.fromkeys(run["order"] for run in mine))
        table = main_table(mine).replace("## All methods", f"## All methods: {named} ({base})")
        lines.append(table)
    learned = learned_table(runs, INITIAL).replace("alone\n", f"alone ({base})\n", 1)
    goals = goals_table(runs, GOALS).replace("## Goals", f"## Goals ({base})", 1)
    return "\n".join([*lines, note, learned, goals])


def draw_base(base: str, runs: Sequence[Results], figures: Path) -> None:
    """A picture a stream."""
    for order in dict.fromkeys(run["order"] for run in runs):
        mine = [run for run in runs if run["order"] == order]
        draw_order(mine, figures / f"images-{base}-{order}.png")


if __name__ == "__main__":
    main()
