"""What ``run --into`` measured with other numbers: sizes of core and LoRA, lower learning rates.

LoRA's own rate is chosen for one fresh LoRA and one task; it is too much for some of the methods
that train one LoRA on all tasks, which are therefore run again at a lower one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.harness.markdown import section
from experiments.harness.methods import ORDER_FREE
from experiments.harness.results import Results, read, seed_of
from experiments.harness.tables import mean_of, row, scores

SHARE, LORA, HEAD = "share_strict", "per_task_lora", "head_only"
SLOWER = ("joint_lora", "sequential_lora", "o_lora", "ewc", "replay")
"""Methods that train one LoRA on all tasks."""


def read_sizes(folder: Path, base: str = "") -> list[Results]:
    """Results files of ``run`` with another p and phi, or another rank: a folder each."""
    return [results for place in sorted(folder.glob("*")) for results in read(place / base)]


def size_table(
    runs: Sequence[Results], sizes: Sequence[Results], initial: int, of: str = ""
) -> str:
    """Methods by how much a task trains, seed by seed; empty where there is no other size.

    Args:
        runs: results files of ``run`` as it is.
        sizes: of ``run`` with another size; they have strict Share or per-task LoRA only.
        initial: tasks that came as adapters.
        of: after the heading.
    """
    rows: list[Sequence[object]] = []
    for run in runs:
        like = [s for s in sizes if (s["order"], seed_of(s)) == (run["order"], seed_of(run))]
        pairs = [(s, m) for s in [run, *like] for m in (LORA, SHARE) if m in s["methods"]]
        pairs.sort(key=lambda pair: (pair[1], -_trained(*pair)))
        rows += [_size_row(run, *pair, initial) for pair in pairs] if like else []
    if not rows:
        return ""
    return section(
        f"## How much a task trains{of}",
        "Own LoRAs of other ranks, and strict Share with smaller and larger cores, seed by seed. "
        f"Share's first {initial} tasks are own LoRAs of rank {runs[0]['settings']['rank']}, "
        "compressed; the gain is that on the other tasks, beside own LoRA of that rank.",
        "stream | seed | trained as | numbers a task | times fewer than LoRA's | all tasks "
        "| the other tasks | gain kept | forgetting",
        rows,
        "lrlr",
    )


def _size_row(run: Results, size: Results, method: str, initial: int) -> Sequence[object]:
    """One method of another size beside own LoRA and head only of the run."""
    later = run["tasks"][initial:]
    mine, own, head = (
        fmean(scores(results, m)[task] for task in later)
        for results, m in ((size, method), (run, LORA), (run, HEAD))
    )
    trained = _trained(size, method)
    return (
        run["order"],
        seed_of(run),
        _name(size, method),
        f"{trained:,}",
        f"{_trained(run, LORA) / trained:.1f}",
        f"{mean_of(size, method):.2f}",
        f"{mine:.2f}",
        f"{(mine - head) / (own - head):.0%}" if own > head else "-",
        f"{_forgetting(run, size):.2f}" if method == SHARE else "-",
    )


def _name(size: Results, method: str) -> str:
    settings = size["settings"]
    if method == LORA:
        return f"LoRA of rank {settings['rank']}"
    return f"core, p = {settings['p']}, phi = {settings['phi']}, k = {settings['k']}"


def _forgetting(run: Results, size: Results) -> float:
    both = {**run, "methods": {**run["methods"], SHARE: size["methods"][SHARE]}}
    return row(both, SHARE).forgetting or 0


def _trained(results: Results, method: str) -> int:
    """Numbers of a task that is learned from data."""
    return int(results["methods"][method]["trainable"][results["tasks"][-1]])


def with_slower(run: dict[str, Any], slower: Sequence[Results]) -> dict[str, Any]:
    """The results with the better of both runs of each such method, by its mean at the end.

    Args:
        run: a results file.
        slower: results files of the same streams and seeds with another rate.
    """
    methods = dict(run["methods"])
    for name in SLOWER:
        tried = _tried(run, slower, name)
        if tried:
            methods[name] = max(tried, key=lambda r: mean_of(r, name))["methods"][name]
    return {**run, "methods": methods}


def slower_table(runs: Sequence[Results], slower: Sequence[Results]) -> str:
    """Mean at the end of each such method, rate by rate; empty where there is nothing slower."""
    rows = []
    for run in runs:
        for name in SLOWER:
            tried = _tried(run, slower, name)
            if any(results is not run for results in tried):
                said = "; ".join(f"{_rate(r):g}: {mean_of(r, name):.2f}" for r in tried)
                rows.append([run["order"], seed_of(run), name, said])
    text = "Mean over the tasks at the end by LoRA's learning rate; all else shows the best."
    header = "stream | seed | method | rate: mean"
    return section("## Other learning rates", text, header, rows, "lrl") if rows else ""


def _tried(run: Results, slower: Sequence[Results], method: str) -> list[Results]:
    """Results files of the run's seed and stream (tasks in any order, where it does not matter)
    that have the method."""
    again = [results for results in slower if _stream(results, method) == _stream(run, method)]
    return [results for results in (run, *again) if method in results["methods"]]


def _stream(results: Results, method: str) -> tuple[Any, int]:
    tasks = sorted(results["tasks"]) if method in ORDER_FREE else results["order"]
    return tasks, seed_of(results)


def _rate(results: Results) -> float:
    return float(results["settings"]["lora"]["learning_rate"])
