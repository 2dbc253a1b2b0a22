"""Tables and figures of all runs.

    python -m experiments.text_stream.summarise

Writes ``results/tables.md``, ``results/claims.json`` and ``docs/figures/text-stream-*.png``;
nothing is computed that is not in the results files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from experiments.common.claims import write_claims
from experiments.common.figures import draw_order, draw_subspace
from experiments.common.runs import read
from experiments.common.tables import (
    Goals,
    goals_table,
    learned_table,
    main_table,
)
from experiments.common.transfer import transfer_table
from experiments.text_stream.claims import claims
from experiments.text_stream.trials import sweep_table, tune_table

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
    parser.add_argument("--trials", type=Path, default=HERE / "results", help="of tune and sweep")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tables.md")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    chosen = parser.parse_args()
    runs, curves = read(chosen.runs), read(chosen.transfer)
    sections = [main_table(runs), learned_table(runs, INITIAL), goals_table(runs, GOALS)]
    if curves:
        sections.append(transfer_table(curves))
    for name, table in (("tune", tune_table), ("sweep", sweep_table)):
        file = chosen.trials / f"{name}.json"
        if file.is_file():
            sections.append(table(json.loads(file.read_text())))
    chosen.out.write_text("\n".join(sections))
    found = claims(runs, chosen.sizes)
    write_claims(chosen.out.with_name("claims.json"), found, COMMAND)
    for order in dict.fromkeys(run["order"] for run in runs):
        mine = [run for run in runs if run["order"] == order]
        draw_order(mine, chosen.figures / f"text-stream-{order}.png")
    draw_subspace(runs[0], INITIAL, chosen.figures / "text-stream-subspace.png")


if __name__ == "__main__":
    main()
