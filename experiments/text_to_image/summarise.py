"""Tables, claims and figures of all runs.

    python -m experiments.text_to_image.summarise

Writes ``results/tables.md``, ``results/claims.json`` and ``docs/figures/text-to-image-*.png``;
nothing is computed that is not in the results files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from experiments.common.claims import write_claims
from experiments.common.figures import draw_order, draw_subspace
from experiments.common.runs import read
from experiments.common.sizes import read_sizes, size_table
from experiments.common.slower import slower_table, with_slower
from experiments.common.tables import Goals, Results, goals_table, learned_table, main_table
from experiments.text_to_image.claims import claims
from experiments.text_to_image.compare import BASE, END, LEARNED, OWN
from experiments.text_to_image.pictures import grid
from experiments.text_to_image.script import RESULTS
from experiments.text_to_image.settings import INITIAL, TASKS
from experiments.text_to_image.tables import (
    adapters_table,
    distance_table,
    real_table,
    tune_table,
    verdict_table,
)

FIGURES = Path(__file__).parents[2] / "docs" / "figures"
GOALS = Goals(score=0.98, gain=0.9, forgetting=1.0)
NEEDED = ("head_only", "per_task_lora", "share_strict")
"""Without these a results file is not finished, and is left out."""
ROWS = {
    BASE: "no adapter",
    OWN: "own LoRA\n(one a style)",
    LEARNED: "Share, right after\nlearning the style",
    END: "Share, after the\nlast style",
}
COMMAND = "python -m experiments.text_to_image.summarise"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figures", type=Path, default=FIGURES)
    chosen = parser.parse_args()
    runs = [r for r in read(chosen.results / "runs") if all(n in r["methods"] for n in NEEDED)]
    compared = read(chosen.results / "compare")
    adapters = read(chosen.results / "adapters")
    slower = read(chosen.results / "slower" / "runs")
    note = slower_table(runs, slower)
    runs = [with_slower(run, slower) for run in runs]
    tables = [main_table(runs), note, learned_table(runs, INITIAL), goals_table(runs, GOALS)]
    tables.append(size_table(runs, read_sizes(chosen.results / "sizes", "runs"), INITIAL))
    tables += [verdict_table(compared), distance_table(compared)]
    tables += [adapters_table(adapters)] if adapters else []
    real = chosen.results / "real_adapter.json"
    tables += [real_table(json.loads(real.read_text()))] if real.is_file() else []
    tuned = chosen.results / "tune.json"
    tables += [tune_table(json.loads(tuned.read_text()))] if tuned.is_file() else []
    (chosen.results / "tables.md").write_text("\n".join(t for t in tables if t))
    write_claims(chosen.results / "claims.json", claims(runs, compared, adapters), COMMAND)
    draw(runs, chosen.results / "samples", chosen.figures)


def draw(runs: Sequence[Results], samples: Path, figures: Path) -> None:
    """All figures; images are those of the first seed."""
    figures.mkdir(parents=True, exist_ok=True)
    draw_order(runs, figures / "text-to-image-scores.png")
    draw_subspace(runs[0], INITIAL, figures / "text-to-image-subspace.png")
    draw_images(sorted(samples.glob("*.npz"))[0], figures / "text-to-image-styles.png")


def draw_images(file: Path, path: Path) -> None:
    """Two digits a style, by what made them; the same prompts and noise in every row."""
    with np.load(file) as found:
        images = {name: found[name] / 255 for name in ROWS if name in found}
    digits = [(3 * i, 3 * i + 1) for i in range(len(TASKS))]
    rows = {
        ROWS[name]: [np.hstack([styles[i][d % 10] for d in digits[i]]) for i in range(len(TASKS))]
        for name, styles in images.items()
    }
    columns = [
        f"{style}\n({'finished LoRA' if i < INITIAL else 'learned here'})"
        for i, style in enumerate(TASKS)
    ]
    title = f"One Share model for {len(TASKS)} styles: same prompts and noise in every row"
    grid(path, title, columns, rows, shape=(1.6, 0.85))


if __name__ == "__main__":
    main()
