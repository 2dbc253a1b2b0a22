"""Tables of what ``few`` and ``steps`` measured.

    python -m experiments summarise transfer

Writes ``results/tables.md``; nothing is computed that is not in the results files.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from experiments.harness.markdown import section
from experiments.harness.results import read
from experiments.transfer.few import REPORTING
from experiments.transfer.learners import WAYS

RESULTS = Path(__file__).parent / "results"

PAIRS = (
    ("LoRA from the related task's", "own LoRA"),
    ("related task as start", "own LoRA"),
    ("related task as start", "LoRA from the related task's"),
    ("related task as start", "zero start, related known"),
    ("unrelated task as start", "zero start, unrelated known"),
    ("mixture and residual, related known", "related task as start"),
    ("mixture and residual, unrelated known", "zero start, unrelated known"),
    ("automatic start, related known", "own LoRA"),
    ("automatic start, unrelated known", "zero start, unrelated known"),
    ("zero start, related known", "random basis"),
    ("zero start, unrelated known", "random basis"),
    ("zero start, related known", "own LoRA"),
)
"""Two ways whose difference is shown, paired over tasks and seeds."""

PART = 0.95
"""Of own LoRA's last score that ``steps`` asks for."""

Records = Sequence[Mapping[str, Any]]


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of all results")
    results: Path = parser.parse_args(arguments).results
    few = [r for r in read(results / "few") if r["task"] in REPORTING]
    steps = [r for r in read(results / "steps") if r["task"] in REPORTING]
    parts = [part for count in counts(few) for part in of_count(few, count)]
    parts += [steps_table(steps)] if steps else []
    (results / "tables.md").write_text("\n".join(parts), encoding="utf-8")


def counts(records: Records) -> list[int]:
    """Numbers of examples, ascending."""
    return sorted({r["examples"] for r in records})


def of_count(records: Records, count: int) -> list[str]:
    """Scores and differences at one number of examples."""
    records = [r for r in records if r["examples"] == count]
    tasks = [task for task in REPORTING if any(r["task"] == task for r in records)]
    seeds = len({r["seed"] for r in records})
    rows = []
    for way in WAYS:
        cells = [_mean(scores_of(records, task, way)) for task in tasks]
        trained = [r["ways"][way]["trained"] for r in records if way in r["ways"]]
        if trained:
            rows.append([way, *cells, f"{max(trained):,}"])
    scores = section(
        f"## {count} examples: scores",
        f"Percent of the test examples, mean over {seeds} seeds, or as many as a way was run at; "
        "the largest number of trained numbers.",
        f"way | {' | '.join(tasks)} | trained",
        rows,
        "lr",
    )
    rows = []
    for first, second in PAIRS:
        by_task = [differences(records, [task], first, second) for task in tasks]
        together = differences(records, tasks, first, second)
        if together:
            rows.append([f"{first} - {second}", *map(_mean, by_task), _with_error(together)])
    paired = section(
        f"## {count} examples: differences",
        "Points, paired over tasks and seeds; the last column has its standard error over all "
        "pairs of task and seed.",
        f"difference | {' | '.join(tasks)} | mean",
        rows,
        "lr",
    )
    return [scores, paired]


def scores_of(records: Records, task: str, way: str) -> list[float]:
    """Scores of a way on a task, a seed each."""
    return [r["ways"][way]["score"] for r in records if r["task"] == task and way in r["ways"]]


def differences(records: Records, tasks: Iterable[str], first: str, second: str) -> list[float]:
    """Points by which one way is better than another, where both were run."""
    return [
        r["ways"][first]["score"] - r["ways"][second]["score"]
        for r in records
        if r["task"] in set(tasks) and {first, second} <= set(r["ways"])
    ]


def steps_table(records: Records) -> str:
    """Steps until a part of own LoRA's last score; first and last scores."""
    rows = []
    for record in records:
        wanted = PART * record["curves"]["own LoRA"]["scores"][-1]
        for way, curve in record["curves"].items():
            points = zip(curve["steps"], curve["scores"], strict=True)
            reached = next((step for step, score in points if score >= wanted), None)
            rows.append(
                [
                    *(record["task"], record["examples"], record["seed"], way),
                    *(f"{curve['scores'][0]:.1f}", f"{curve['scores'][-1]:.1f}"),
                    "never" if reached is None else reached,
                ]
            )
    return section(
        f"## Steps to {PART:.0%} of own LoRA",
        "Steps until a score on the test examples is first that part of own LoRA's last one; 0: "
        "before any training but that of the head.",
        "task | examples | seed | way | first score | last score | steps",
        rows,
        "lrrlr",
    )


def _mean(values: Sequence[float], shown: Callable[[float], str] = "{:.1f}".format) -> str:
    return shown(fmean(values)) if values else "-"


def _with_error(values: Sequence[float]) -> str:
    """Mean and standard error, and how many values there are."""
    if len(values) < 2:
        return f"{fmean(values):+.1f} (n = {len(values)})"
    return f"{fmean(values):+.1f} ± {stdev(values) / len(values) ** 0.5:.1f} (n = {len(values)})"
