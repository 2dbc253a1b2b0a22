"""Tables of the pose scores: test sets and categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.common.tables import Results, rows, scores, spread

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
        f"seeds ({len(runs)}); the median error is the mean of the categories' medians.",
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
        "Acc at pi/6 / Acc at pi/18 / median error in degrees; means over the seeds "
        f"({len(runs)}).",
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


def size_table(runs: Sequence[Results], others: Sequence[Results], initial: int) -> str:
    """Strict Share by how much a task trains.

    Args:
        runs: results files of ``run`` as it is, of all seeds.
        others: of ``run`` with another p, phi and k; they have strict Share only.
        initial: tasks that came as adapters.
    """
    lines = [
        "## How much a category trains",
        "",
        "Strict Share with smaller and larger cores; Acc at pi/6, seed by seed. The first "
        f"{initial} categories are own LoRAs, compressed; the others are learned.",
        "",
        "| seed | trained as | numbers a category | LoRA's, times fewer | all categories | learned "
        "ones | gain kept on these | forgetting |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for run in runs:
        seed = run["environment"]["seed"]
        known = [run, *(o for o in others if o["environment"]["seed"] == seed)]
        lines.append(_size_row(run, run, "per_task_lora", initial))
        for other in sorted(known, key=lambda o: -int(o["settings"]["p"])):
            lines.append(_size_row(run, other, "share_strict", initial))
    return "\n".join(lines) + "\n"


def _size_row(run: Results, other: Results, method: str, initial: int) -> str:
    """One method of another file beside own LoRA and head only of the run."""
    found, settings = other["methods"][method], other["settings"]
    last = run["tasks"][-1]
    trained = found["trainable"][last]
    ratio = run["methods"]["per_task_lora"]["trainable"][last] / trained
    mine, own, head = (
        _over(r, m, initial)
        for r, m in ((other, method), (run, "per_task_lora"), (run, "head_only"))
    )
    lost, name = "-", f"LoRA of rank {settings['rank']}"
    if method == "share_strict":
        merged = {**run, "methods": {**run["methods"], method: found}}
        lost = next(f"{r.forgetting or 0:.2f}" for r in rows([merged]) if r.method == method)
        name = f"p = {settings['p']}, phi = {settings['phi']}, k = {settings['k']}"
    gain = (mine - head) / (own - head)
    every = fmean(scores(other, method).values())
    seed = run["environment"]["seed"]
    cells = (name, f"{trained:,}", f"{ratio:.1f}", f"{every:.2f}", f"{mine:.2f}", f"{gain:.0%}")
    return f"| {seed} | {' | '.join(cells)} | {lost} |"


def _over(run: Results, method: str, initial: int) -> float:
    """Mean over the tasks that are learned from data."""
    found = scores(run, method)
    return fmean(found[task] for task in run["tasks"][initial:])
