"""Tables and figures of all runs.

    python -m experiments.text_stream.summarise

Writes ``results/tables.md`` and ``docs/figures/text-stream-*.png``; nothing is computed that is not
in the results files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from experiments.text_stream.settings import METHODS, ORDER_FREE

from sharespace.evaluate import Comparison, Cost, Row, ScoreMatrix, markdown
from sharespace.evaluate.measures import acc_over_steps, task_forgetting
from sharespace.report import (
    Panel,
    draw_cka,
    draw_forgetting,
    draw_settling,
    draw_steps,
    matrix_panels,
    picture,
)

HERE = Path(__file__).parent
FIGURES = HERE.parents[1] / "docs" / "figures"
SHOWN = ("share_strict", "sequential_lora", "o_lora", "osf", "ewc", "replay")
"""Methods with steps, in the figures."""
INITIAL = 3

Run = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=HERE / "results" / "runs")
    parser.add_argument("--transfer", type=Path, default=HERE / "results" / "transfer")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tables.md")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    chosen = parser.parse_args()
    runs = [json.loads(file.read_text()) for file in sorted(chosen.runs.glob("*.json"))]
    curves = [json.loads(file.read_text()) for file in sorted(chosen.transfer.glob("*.json"))]
    sections = [main_table(runs), learned_table(runs), goals(runs)]
    if curves:
        sections.append(transfer_table(curves))
    chosen.out.write_text("\n".join(sections))
    draw(runs, chosen.figures)


def scores(run: Run, method: str) -> dict[str, float]:
    """Task -> score at the end."""
    return dict(ScoreMatrix.from_record(run["methods"][method]["matrix"]).last)


def rows(runs: Sequence[Run]) -> list[Row]:
    """One a run and method; methods that know no order once a seed."""
    found = []
    for run in runs:
        own, head = scores(run, "per_task_lora"), scores(run, "head_only")
        seed = run["environment"]["seed"]
        for name in METHODS:
            again = name in ORDER_FREE and run["order"] != runs[0]["order"]
            if name in run["methods"] and not again:
                record = run["methods"][name]
                matrix = ScoreMatrix.from_record(record["matrix"])
                found.append(
                    Row.from_matrix(
                        name,
                        matrix,
                        cost(record),
                        own=own,
                        head=head,
                        seed=seed,
                        order=run["order"],
                    )
                )
    return found


def cost(record: Mapping[str, Any]) -> Cost:
    """What a method took."""
    trained, heads = record["trainable"], record["heads"]
    return Cost(
        fmean(trained.values()),
        fmean(trained[t] + heads[t] for t in trained),
        record["stored"]["total"],
        record["paper_count"],
    )


def main_table(runs: Sequence[Run]) -> str:
    """All methods."""
    return f"## All methods\n\n{markdown(Comparison(tuple(rows(runs))))}\n"


def learned_table(runs: Sequence[Run]) -> str:
    """Only tasks that Share learned from data: its first ones are own LoRAs, compressed."""
    names = ("head_only", "per_task_lora", "share_strict", "share_full", "random_basis")
    lines = [
        "## Tasks learned in the subspace alone",
        "",
        f"Share's first {INITIAL} tasks are own LoRAs, compressed; these are the others. Mean over "
        "the tasks, ± sample standard deviation over the seeds (how many).",
        "",
        "| order | tasks | " + " | ".join(names) + " | numbers trained, LoRA / Share |",
        "|---|---|" + "---|" * (len(names) + 1),
    ]
    for order in dict.fromkeys(run["order"] for run in runs):
        mine = [run for run in runs if run["order"] == order]
        tasks = mine[0]["tasks"][INITIAL:]
        cells = [of_tasks(mine, name, tasks) for name in names]
        trained = [mine[0]["methods"][n]["trainable"][tasks[-1]] for n in names[1:3]]
        ratio = f"{trained[0]:,} / {trained[1]:,} = {trained[0] / trained[1]:.1f}x"
        lines.append(f"| {order} | {', '.join(tasks)} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines) + "\n"


def of_tasks(runs: Sequence[Run], method: str, tasks: Sequence[str]) -> str:
    """Mean over some tasks, over the runs that have the method."""
    known = [run for run in runs if method in run["methods"]]
    found = [fmean(scores(run, method)[t] for t in tasks) for run in known]
    return f"{spread(found)} ({len(found)})" if found else "-"


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation."""
    deviation = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{deviation}"


def goals(runs: Sequence[Run]) -> str:
    """What was aimed at, and what was met, over all runs."""
    strict = [mean_of(r, "share_strict") / mean_of(r, "per_task_lora") for r in runs]
    forgotten = [r.forgetting for r in rows(runs) if r.method == "share_strict"]
    kept = [r.gain_retained for r in rows(runs) if r.method == "share_strict"]
    full = [
        max(mean_of(r, "per_task_lora"), mean_of(r, "joint_lora")) - mean_of(r, "share_full")
        for r in runs
        if "share_full" in r["methods"]
    ]
    lines = ["## Goals", "", "| goal | measured (mean of the runs; worst) | met |", "|---|---|---|"]
    lines += [
        goal("strict: at least 99 % of per-task LoRA's mean", strict, 0.99, min, "{:.1%}"),
        goal("strict: 100 % of it", strict, 1.0, min, "{:.1%}"),
        goal("strict: 95 % of LoRA's gain over head only", numbers(kept), 0.95, min, "{:.1%}"),
        goal("strict: mean forgetting at most 0.5 points", numbers(forgotten), 0.5, max, "{:.2f}"),
        goal("Share-full: at most 0.3 below the better of own and joint", full, 0.3, max, "{:.2f}"),
    ]
    return "\n".join(lines) + "\n"


def mean_of(run: Run, method: str) -> float:
    """Over the tasks."""
    return fmean(scores(run, method).values())


def numbers(values: Sequence[float | None]) -> list[float]:
    """Those that are there."""
    return [value for value in values if value is not None]


def goal(
    text: str, values: Sequence[float], limit: float, worst: Callable[..., float], form: str
) -> str:
    """A row; met where the mean meets the limit (``worst`` says on which side it is)."""
    if not values:
        return f"| {text} | - | - |"
    mean = fmean(values)
    met = mean >= limit if worst is min else mean <= limit
    shown = f"{form.format(mean)}; {form.format(worst(values))}"
    return f"| {text} | {shown} | {'yes' if met else 'no'} |"


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


def draw(runs: Sequence[Run], folder: Path) -> None:
    """All figures."""
    for order in dict.fromkeys(run["order"] for run in runs):
        mine = [run for run in runs if run["order"] == order]
        draw_order(mine, folder / f"text-stream-{order}.png")
    draw_subspace(runs[0], folder / "text-stream-subspace.png")


def draw_order(runs: Sequence[Run], path: Path) -> None:
    """R of the first seed, the mean step by step, and what was forgotten, of one order."""
    first, tasks = runs[0], runs[0]["tasks"]
    known = [name for name in SHOWN if name in first["methods"]]
    by_method = {
        name: [matrix_of(run, name) for run in runs if name in run["methods"]] for name in known
    }
    heat = {n: dict(zip(m[0].steps, m[0].scores, strict=True)) for n, m in by_method.items()}
    means = {n: [aligned(m, len(tasks)) for m in found] for n, found in by_method.items()}
    levels = {
        name: fmean(mean_of(run, method) for run in runs)
        for name, method in (("own LoRA", "per_task_lora"), ("head only", "head_only"))
    }
    lost = {n: forgotten(found) for n, found in by_method.items()}
    panels = [
        *matrix_panels({n: heat[n] for n in known[:2]}, tasks),
        Panel(
            "mean over the tasks so far",
            partial(draw_steps, methods=means, steps=tasks, levels=levels),
        ),
        Panel("forgetting", partial(draw_forgetting, methods=lost)),
    ]
    seed = first["environment"]["seed"]
    title = f"Stream {first['order']}, {len(runs)} seeds (heat maps: seed {seed})"
    picture(path, title, panels, columns=2)


def matrix_of(run: Run, method: str) -> ScoreMatrix:
    return ScoreMatrix.from_record(run["methods"][method]["matrix"])


def aligned(matrix: ScoreMatrix, tasks: int) -> list[float | None]:
    """Mean after as many tasks as there are, None where a step learned several at once."""
    found: list[float | None] = [None] * tasks
    for score, seen in zip(acc_over_steps(matrix), seen_tasks(matrix), strict=True):
        found[seen - 1] = score
    return found


def seen_tasks(matrix: ScoreMatrix) -> list[int]:
    """Tasks learned after each step."""
    return [sum(score is not None for score in row) for row in matrix.scores]


def forgotten(matrices: Sequence[ScoreMatrix]) -> dict[str, list[float]]:
    """Task -> points in each run."""
    found: dict[str, list[float]] = {}
    for matrix in matrices:
        for task, points in task_forgetting(matrix).items():
            found.setdefault(task, []).append(points)
    return found


def draw_subspace(run: Run, path: Path) -> None:
    """How the bases move from step to step, and how alike independently trained updates are."""
    changes = run["methods"]["share_strict"]["settling"]
    angles = {f"{side} bases": [c[side] for c in changes] for side in ("left", "right")}
    cka = run["methods"]["per_task_lora"]["cka"]
    panels = [
        Panel(
            "principal angles to the bases before",
            partial(draw_settling, angles=angles, steps=run["tasks"][INITIAL:]),
        ),
        Panel(
            "linear CKA of own LoRAs", partial(draw_cka, names=cka["names"], values=cka["values"])
        ),
    ]
    picture(path, f"Subspaces, order {run['order']}, seed {run['environment']['seed']}", panels)


if __name__ == "__main__":
    main()
