"""Tables, claims and figures of all runs.

    python -m experiments.generation.summarise

Writes ``results/tables.md``, ``results/claims.json`` and ``docs/figures/generation-*.png``; nothing
is computed that is not in the results files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from experiments.common.claims import write_claims
from experiments.common.runs import read
from experiments.common.sizes import read_sizes, size_table
from experiments.common.slower import slower_table, with_slower
from experiments.common.tables import Goals, goals_table, learned_table, main_table, mean_of
from experiments.generation import draw, tables, tune, weighing
from experiments.generation.claims import claims
from experiments.generation.relative import Results
from experiments.generation.settings import INITIAL

HERE = Path(__file__).parent
FIGURES = HERE.parents[1] / "docs" / "figures"
GOALS = Goals(score=0.98, gain=0.9, forgetting=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--merge", type=Path, default=HERE / "results" / "merge")
    parser.add_argument("--relatives", type=Path, default=HERE / "results" / "relatives")
    parser.add_argument("--learn", type=Path, default=HERE / "results" / "learn")
    parser.add_argument("--slower", type=Path, default=HERE / "results" / "slower")
    parser.add_argument("--sizes", type=Path, default=HERE / "results" / "sizes")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    chosen = parser.parse_args()
    merged, learned = read(chosen.merge), read(chosen.learn)
    sections = [tables.text(mine) for mine in by_start(merged)]
    related = [run for run in read(chosen.relatives) if "original" in run["methods"]]
    if related:
        sections.append(tables.relatives(related))
    for name, table in (("weighing", weighing.table), ("tune", tune.table)):
        file = chosen.out / f"{name}.json"
        if file.is_file():
            sections.append(table(json.loads(file.read_text())))
    if learned:
        slower = read(chosen.slower)
        note = slower_table(learned, slower)
        learned = [with_slower(run, slower) for run in learned]
        sections += [main_table(learned), note, learned_table(learned, INITIAL)]
        sections.append(size_table(learned, read_sizes(chosen.sizes), INITIAL))
    if judged := can_judge(learned):
        sections.append(goals_table(judged, GOALS))
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "tables.md").write_text("\n".join(s for s in sections if s))
    command = "python -m experiments.generation.summarise"
    write_claims(chosen.out / "claims.json", claims(merged, judged), command)
    starts = by_start(merged)
    draw.draw_batches(starts, chosen.figures / "generation-batches.png")
    draw.draw_sizes([mine[0] for mine in starts], chosen.figures / "generation-sizes.png")
    if judged:
        draw.draw_learned(judged, INITIAL, chosen.figures / "generation-learn.png")


def can_judge(learned: Sequence[Results]) -> list[Results]:
    """Runs in which own LoRAs learned something and strict Share was run."""
    both = [r for r in learned if {"per_task_lora", "share_strict"} <= set(r["methods"])]
    return [run for run in both if mean_of(run, "per_task_lora") > 0]


def by_start(merged: Sequence[Results]) -> list[list[Results]]:
    """Runs of each start of the adapters."""
    starts = dict.fromkeys(run["start"] for run in merged)
    return [[run for run in merged if run["start"] == start] for start in starts]


if __name__ == "__main__":
    main()
