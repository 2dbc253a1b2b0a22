"""Tables, claims and figures of all runs.

    python -m experiments.pose.summarise --data DATA

Writes ``results/tables.md``, ``results/claims.json`` and ``docs/figures/pose-*.png``. All figures
come from the results files; only the views in the picture are rendered again, for which it needs
the meshes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common.claims import write_claims
from experiments.common.figures import draw_order, draw_subspace
from experiments.common.runs import read
from experiments.common.sizes import read_sizes, size_table
from experiments.common.slower import slower_table, with_slower
from experiments.common.tables import Goals, goals_table, learned_table, main_table
from experiments.pose import pictures, script
from experiments.pose.claims import claims
from experiments.pose.settings import INITIAL
from experiments.pose.tables import category_table, occlusion_table

HERE = Path(__file__).parent
FIGURES = HERE.parents[1] / "docs" / "figures"
GOALS = Goals(score=0.98, gain=0.9, forgetting=1.0)
NEEDED = ("head_only", "per_task_lora", "share_strict")
"""Without these a results file is not finished, and is left out."""
COMMAND = "python -m experiments.pose.summarise --data DATA"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="has meshes/")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--quick", action="store_true", help="the runs were tiny")
    chosen = parser.parse_args(arguments)
    runs, scored = finished(chosen.results / "runs"), read(chosen.results / "occluded")
    slower = read(chosen.results / "slower")
    note = slower_table(runs, slower)
    runs = [with_slower(run, slower) for run in runs]
    parts = [main_table(runs), note, learned_table(runs, INITIAL), goals_table(runs, GOALS)]
    parts.append(size_table(runs, read_sizes(chosen.results / "sizes"), INITIAL))
    if scored:
        parts += [occlusion_table(scored), category_table(scored)]
        path = chosen.figures / "pose-views.png"
        size = script.size_of(chosen)
        pictures.draw(runs, scored, chosen.data / "meshes", size, path)
    (chosen.results / "tables.md").write_text("\n".join(parts))
    write_claims(chosen.results / "claims.json", claims(runs, scored), COMMAND)
    for order in dict.fromkeys(run["order"] for run in runs):
        mine = [run for run in runs if run["order"] == order]
        draw_order(mine, chosen.figures / f"pose-{order}.png")
    draw_subspace(runs[0], INITIAL, chosen.figures / "pose-subspace.png")


def finished(folder: Path) -> list[dict[str, Any]]:
    """Results files that have what every table needs."""
    return [run for run in read(folder) if all(name in run["methods"] for name in NEEDED)]


if __name__ == "__main__":
    main()
