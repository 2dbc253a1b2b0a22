"""Tables of the pose scores: test sets and categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.common.tables import spread

Scored = Mapping[str, Any]
"""What a results file of ``occluded`` holds."""
TESTS = {
    "clean": "not occluded",
    "L1": "L1 (20-40 %)",
    "L2": "L2 (40-60 %)",
    "L3": "L3 (60-80 %)",
}
METHODS = {
    "head_only": "head only",
    "per_task_lora": "own LoRA",
    "share_strict": "Share at the end",
}
MEASURES = {"acc_pi_6": "Acc pi/6", "acc_pi_18": "Acc pi/18", "median": "median error, degrees"}


def means(runs: Sequence[Scored], method: str, test: str, measure: str) -> list[float]:
    """Over the categories, of each run."""
    return [fmean(found[method][test][measure] for found in run["scores"].values()) for run in runs]


def mean_at(runs: Sequence[Scored], method: str, test: str, measure: str) -> float:
    """Over the categories and runs."""
    return fmean(means(runs, method, test, measure))


def occlusion_table(runs: Sequence[Scored]) -> str:
    """All measures at all levels."""
    lines = [
        "## Under occlusion",
        "",
        f"Mean over the {len(runs[0]['scores'])} categories, ± sample standard deviation over the "
        f"runs ({len(runs)}); the median error is the mean of the categories' medians.",
        "",
        f"| test views | method | {' | '.join(MEASURES.values())} |",
        "|---|---|" + "--:|" * len(MEASURES),
    ]
    for test, title in TESTS.items():
        for method, name in METHODS.items():
            cells = [spread(means(runs, method, test, measure)) for measure in MEASURES]
            lines.append(f"| {title} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def category_table(runs: Sequence[Scored]) -> str:
    """Every category, not occluded."""
    lines = [
        "## Every category, not occluded",
        "",
        f"Acc at pi/6 / Acc at pi/18 / median error in degrees; means over the runs ({len(runs)}).",
        "",
        f"| category | {' | '.join(METHODS.values())} |",
        "|---|" + "---|" * len(METHODS),
    ]
    for task in runs[0]["scores"]:
        cells = []
        for method in METHODS:
            scored = [run["scores"][task][method]["clean"] for run in runs]
            cells.append(" / ".join(f"{fmean(s[m] for s in scored):.1f}" for m in MEASURES))
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
