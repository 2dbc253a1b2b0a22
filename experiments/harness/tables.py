"""Tables of results files: all methods, the tasks learned in the subspace, the goals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from experiments.harness.markdown import section, table
from experiments.harness.methods import METHODS, ORDER_FREE
from experiments.harness.results import Results, seed_of
from sharespace.compare.comparison import Comparison, ComparisonRow, Cost, markdown
from sharespace.stream.measures import ScoreMatrix


@dataclass(frozen=True)
class Goals:
    """What an experiment aims at."""

    score: float = 0.98
    """Part of per-task LoRA's mean that strict Share keeps."""
    gain: float = 0.9
    """Part of LoRA's gain over the head alone."""
    forgetting: float = 1.0
    """Points, at most."""
    full: float = 0.3
    """Points of Share-full under the better of own and joint LoRA, at most."""


def scores(run: Results, method: str) -> dict[str, float]:
    """Task -> score at the end."""
    return dict(ScoreMatrix.from_record(run["methods"][method]["matrix"]).last)


def mean_of(run: Results, method: str) -> float:
    """Over the tasks."""
    return fmean(scores(run, method).values())


def all_rows(runs: Sequence[Results]) -> list[ComparisonRow]:
    """One a run and method; methods that know no order once a seed."""
    first = runs[0]["order"]
    return [
        row(run, method)
        for run in runs
        for method in METHODS
        if method in run["methods"] and (method not in ORDER_FREE or run["order"] == first)
    ]


def row(run: Results, method: str) -> ComparisonRow:
    """One method of one run, beside own LoRA and the head alone."""
    record = run["methods"][method]
    trained, heads = record["trainable"], record["heads"]
    cost = Cost(
        fmean(trained.values()),
        fmean(trained[t] + heads[t] for t in trained),
        record["stored"]["total"],
        record["paper_count"],
    )
    return ComparisonRow.from_matrix(
        method,
        ScoreMatrix.from_record(record["matrix"]),
        cost,
        own=scores(run, "per_task_lora"),
        head=scores(run, "head_only"),
        seed=seed_of(run),
        order=run["order"],
    )


def of_method(runs: Sequence[Results], method: str) -> list[ComparisonRow]:
    """One row a run that has the method."""
    return [row(run, method) for run in runs if method in run["methods"]]


def main_table(runs: Sequence[Results], of: str = "") -> str:
    """All methods.

    Args:
        runs: of the same tasks, in whatever order.
        of: after the heading.
    """
    return f"## All methods{of}\n\n{markdown(Comparison(tuple(all_rows(runs))))}\n"


def learned_table(runs: Sequence[Results], initial: int, of: str = "") -> str:
    """Only tasks that Share learned from data: its first ones are own LoRAs, compressed."""
    names = ("head_only", "per_task_lora", "share_strict", "share_full", "random_basis")
    rows = []
    for order in dict.fromkeys(run["order"] for run in runs):
        mine = [run for run in runs if run["order"] == order]
        tasks = mine[0]["tasks"][initial:]
        cells = [of_tasks(mine, name, tasks) for name in names]
        trained = [mine[0]["methods"][n]["trainable"][tasks[-1]] for n in names[1:3]]
        ratio = f"{trained[0]:,} / {trained[1]:,} = {trained[0] / trained[1]:.1f}x"
        rows.append([order, ", ".join(tasks), *cells, ratio])
    return section(
        f"## Tasks learned in the subspace alone{of}",
        f"Share's first {initial} tasks are own LoRAs, compressed; these are the others. Mean over "
        "the tasks, ± sample standard deviation over the seeds (how many).",
        f"order | tasks | {' | '.join(names)} | numbers trained, LoRA / Share",
        rows,
    )


def of_tasks(runs: Sequence[Results], method: str, tasks: Sequence[str]) -> str:
    """Mean over some tasks, over the runs that have the method."""
    having = [run for run in runs if method in run["methods"]]
    means = [fmean(scores(run, method)[t] for t in tasks) for run in having]
    return f"{spread(means)} ({len(means)})" if means else "-"


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation."""
    deviation = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{deviation}"


def goals_table(runs: Sequence[Results], goals: Goals, of: str = "") -> str:
    """What was aimed at, and what was met, over all runs."""
    pairs = [(mean_of(r, "share_strict"), mean_of(r, "per_task_lora")) for r in runs]
    strict = [share / own for share, own in pairs if own]
    share_rows = [r for r in all_rows(runs) if r.method == "share_strict"]
    under = [_under_the_better(run) for run in runs if "share_full" in run["methods"]]
    rows = [
        _goal(f"strict: at least {goals.score:.0%} of per-task LoRA's mean", strict, goals.score),
        _goal("strict: 100% of it", strict, 1.0),
        _goal(
            f"strict: {goals.gain:.0%} of LoRA's gain over head only",
            numbers([r.gain_retained for r in share_rows]),
            goals.gain,
        ),
        _goal(
            f"strict: mean forgetting at most {goals.forgetting} points",
            numbers([r.forgetting for r in share_rows]),
            goals.forgetting,
            max,
        ),
        _goal(
            f"Share-full: at most {goals.full} below the better of own and joint",
            under,
            goals.full,
            max,
        ),
    ]
    return f"## Goals{of}\n\n{table('goal | measured (mean of the runs; worst) | met', rows)}\n"


def _under_the_better(run: Results) -> float:
    """Points of Share-full under own or joint LoRA, whichever is better."""
    known = [m for m in ("per_task_lora", "joint_lora") if m in run["methods"]]
    return max(mean_of(run, method) for method in known) - mean_of(run, "share_full")


def numbers(values: Sequence[float | None]) -> list[float]:
    """Those that are there."""
    return [value for value in values if value is not None]


def _goal(
    text: str, values: Sequence[float], limit: float, worst: Callable[..., float] = min
) -> Sequence[str]:
    """A row: parts of which the least is worst (percent), or points of which the most is."""
    if not values:
        return text, "-", "-"
    mean, form = fmean(values), "{:.1%}" if worst is min else "{:.2f}"
    met = mean >= limit if worst is min else mean <= limit
    shown = f"{form.format(mean)}; {form.format(worst(values))}"
    return text, shown, "yes" if met else "no"
