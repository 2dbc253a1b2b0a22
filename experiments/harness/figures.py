"""Figures of results files: R, means step by step, forgetting, and how the subspace settles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from experiments.harness.results import Results, seed_of
from experiments.harness.tables import mean_of
from sharespace.compare.figures import (
    Panel,
    draw_cka,
    draw_forgetting,
    draw_settling,
    draw_steps,
    matrix_panels,
    picture,
)
from sharespace.stream.measures import ScoreMatrix, acc_over_steps, task_forgetting

SHOWN = ("share_strict", "sequential_lora", "o_lora", "osf", "ewc", "replay")
"""Methods with steps, in the figures."""


def draw_order(runs: Sequence[Results], path: Path) -> None:
    """R of the first seed, the mean step by step, and what was forgotten, of one order."""
    first, tasks = runs[0], runs[0]["tasks"]
    shown = [name for name in SHOWN if name in first["methods"]]
    matrices = {
        name: [matrix_of(run, name) for run in runs if name in run["methods"]] for name in shown
    }
    heat = {n: dict(zip(m[0].steps, m[0].scores, strict=True)) for n, m in matrices.items()}
    means = {name: [aligned(m, len(tasks)) for m in known] for name, known in matrices.items()}
    levels = {
        name: fmean(mean_of(run, method) for run in runs)
        for name, method in (("own LoRA", "per_task_lora"), ("head only", "head_only"))
    }
    lost = {name: forgotten(known) for name, known in matrices.items()}
    panels = [
        *matrix_panels({n: heat[n] for n in shown[:2]}, tasks),
        Panel(
            "mean over the tasks so far",
            partial(draw_steps, methods=means, steps=tasks, levels=levels),
        ),
    ]
    if len(shown) > 1:  # Alone, Share's bars would all be of no height.
        panels.append(Panel("forgetting", partial(draw_forgetting, methods=lost)))
    count = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
    title = f"Stream {first['order']}, {count} (heat maps: seed {seed_of(first)})"
    picture(path, title, panels, columns=2)


def matrix_of(run: Results, method: str) -> ScoreMatrix:
    """R of one method."""
    return ScoreMatrix.from_record(run["methods"][method]["matrix"])


def aligned(matrix: ScoreMatrix, tasks: int) -> list[float | None]:
    """Mean after as many tasks as there are, None where a step learned several at once."""
    means: list[float | None] = [None] * tasks
    for score, row in zip(acc_over_steps(matrix), matrix.scores, strict=True):
        means[sum(s is not None for s in row) - 1] = score
    return means


def forgotten(matrices: Sequence[ScoreMatrix]) -> dict[str, list[float]]:
    """Task -> points in each run."""
    by_task: dict[str, list[float]] = {}
    for matrix in matrices:
        for task, points in task_forgetting(matrix).items():
            by_task.setdefault(task, []).append(points)
    return by_task


def draw_subspace(run: Results, initial: int, path: Path) -> None:
    """How the bases move from step to step, and how alike independently trained updates are."""
    changes = run["methods"]["share_strict"]["settling"]
    angles = {f"{side} bases": [c[side] for c in changes] for side in ("left", "right")}
    cka = run["methods"]["per_task_lora"]["cka"]
    panels = [
        Panel(
            "principal angles to the bases before",
            partial(draw_settling, angles=angles, steps=run["tasks"][initial:]),
        ),
        Panel(
            "linear CKA of own LoRAs", partial(draw_cka, names=cka["names"], values=cka["values"])
        ),
    ]
    picture(path, f"Subspaces, order {run['order']}, seed {seed_of(run)}", panels)
