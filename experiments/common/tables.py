"""Tables of results files: all methods, the tasks learned in the subspace, the goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from experiments.common.methods import METHODS, ORDER_FREE
from sharespace.compare.comparison import Comparison, ComparisonRow, Cost, markdown
from sharespace.stream.measures import ScoreMatrix

Results = Mapping[str, Any]
"""What a results file holds (``runs``)."""


@dataclass(frozen=True)
class Goals:
    """What an experiment aims at."""

    score: float
    """Part of per-task LoRA's mean that strict Share keeps."""
    gain: float
    """Part of LoRA's gain over the head alone."""
    forgetting: float
    """Points, at most."""
    full: float = 0.3
    """Points of Share-full under the better of own and joint LoRA, at most."""


def scores(run: Results, method: str) -> dict[str, float]:
    """Task -> score at the end."""
    return dict(ScoreMatrix.from_record(run["methods"][method]["matrix"]).last)


def rows(runs: Sequence[Results]) -> list[ComparisonRow]:
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
                    ComparisonRow.from_matrix(
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


def main_table(runs: Sequence[Results]) -> str:
    """All methods."""
    return f"## All methods\n\n{markdown(Comparison(tuple(rows(runs))))}\n"


def learned_table(runs: Sequence[Results], initial: int) -> str:
    """Only tasks that Share learned from data: its first ones are own LoRAs, compressed."""
    names = ("head_only", "per_task_lora", "share_strict", "share_full", "random_basis")
    lines = [
        "## Tasks learned in the subspace alone",
        "",
        f"Share's first {initial} tasks are own LoRAs, compressed; these are the others. Mean over "
        "the tasks, ± sample standard deviation over the seeds (how many).",
        "",
        "| order | tasks | " + " | ".join(names) + " | numbers trained, LoRA / Share |",
        "|---|---|" + "---|" * (len(names) + 1),
    ]
    for order in dict.fromkeys(run["order"] for run in runs):
        mine = [run for run in runs if run["order"] == order]
        tasks = mine[0]["tasks"][initial:]
        cells = [of_tasks(mine, name, tasks) for name in names]
        trained = [mine[0]["methods"][n]["trainable"][tasks[-1]] for n in names[1:3]]
        ratio = f"{trained[0]:,} / {trained[1]:,} = {trained[0] / trained[1]:.1f}x"
        lines.append(f"| {order} | {', '.join(tasks)} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines) + "\n"


def of_tasks(runs: Sequence[Results], method: str, tasks: Sequence[str]) -> str:
    """Mean over some tasks, over the runs that have the method."""
    known = [run for run in runs if method in run["methods"]]
    found = [fmean(scores(run, method)[t] for t in tasks) for run in known]
    return f"{spread(found)} ({len(found)})" if found else "-"


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation."""
    deviation = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{deviation}"


def goals_table(runs: Sequence[Results], wanted: Goals) -> str:
    """What was aimed at, and what was met, over all runs."""
    pairs = [(mean_of(r, "share_strict"), mean_of(r, "per_task_lora")) for r in runs]
    strict = [share / own for share, own in pairs if own]
    forgotten = [r.forgetting for r in rows(runs) if r.method == "share_strict"]
    kept = [r.gain_retained for r in rows(runs) if r.method == "share_strict"]
    full = [
        max(mean_of(r, m) for m in ("per_task_lora", "joint_lora") if m in r["methods"])
        - mean_of(r, "share_full")
        for r in runs
        if "share_full" in r["methods"]
    ]
    lines = ["## Goals", "", "| goal | measured (mean of the runs; worst) | met |", "|---|---|---|"]
    lines += [
        goal(
            f"strict: at least {wanted.score:.0%} of per-task LoRA's mean",
            strict,
            wanted.score,
            min,
            "{:.1%}",
        ),
        goal("strict: 100% of it", strict, 1.0, min, "{:.1%}"),
        goal(
            f"strict: {wanted.gain:.0%} of LoRA's gain over head only",
            numbers(kept),
            wanted.gain,
            min,
            "{:.1%}",
        ),
        goal(
            f"strict: mean forgetting at most {wanted.forgetting} points",
            numbers(forgotten),
            wanted.forgetting,
            max,
            "{:.2f}",
        ),
        goal(
            f"Share-full: at most {wanted.full} below the better of own and joint",
            full,
            wanted.full,
            max,
            "{:.2f}",
        ),
    ]
    return "\n".join(lines) + "\n"


def mean_of(run: Results, method: str) -> float:
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
