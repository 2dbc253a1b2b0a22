"""How much a task trains: strict Share with other cores, LoRA of other ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from experiments.common.runs import read
from experiments.common.tables import Results, rows, scores

SHARE, LORA, HEAD = "share_strict", "per_task_lora", "head_only"


def read_sizes(folder: Path, base: str = "") -> list[Results]:
    """Results files of ``run`` with another p and phi, or another rank: a folder each."""
    return [found for place in sorted(folder.glob("*")) for found in read(place / base)]


def size_table(runs: Sequence[Results], others: Sequence[Results], initial: int) -> str:
    """Methods by how much a task trains, seed by seed; empty where there is no other size.

    Args:
        runs: results files of ``run`` as it is.
        others: of ``run`` with another size; they have strict Share or per-task LoRA only.
        initial: tasks that came as adapters.
    """
    lines = [
        "## How much a task trains",
        "",
        "Own LoRAs of other ranks, and strict Share with smaller and larger cores, seed by seed. "
        f"Share's first {initial} tasks are own LoRAs of rank {runs[0]['settings']['rank']}, "
        "compressed; the gain is that on the other tasks, beside own LoRA of that rank.",
        "",
        "| stream | seed | trained as | numbers a task | times fewer than LoRA's | all tasks "
        "| the other tasks | gain kept | forgetting |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    found = []
    for run in runs:
        mine = [o for o in others if (o["order"], _seed(o)) == (run["order"], _seed(run))]
        both = [(o, m) for o in [run, *mine] for m in (LORA, SHARE) if m in o["methods"]]
        both.sort(key=lambda pair: (pair[1], -_trained(*pair)))
        found += [_row(run, *pair, initial) for pair in both] if mine else []
    return "\n".join([*lines, *found, ""]) if found else ""


def _row(run: Results, other: Results, method: str, initial: int) -> str:
    """One method of another file beside own LoRA and head only of the run."""
    mine, own, head = (
        _over(r, m, run["tasks"][initial:]) for r, m in ((other, method), (run, LORA), (run, HEAD))
    )
    trained = _trained(other, method)
    every = fmean(scores(other, method).values())
    cells = (
        _name(other, method),
        f"{trained:,}",
        f"{_trained(run, LORA) / trained:.1f}",
        f"{every:.2f}",
        f"{mine:.2f}",
        f"{(mine - head) / (own - head):.0%}" if own > head else "-",
        _forgetting(run, other) if method == SHARE else "-",
    )
    return f"| {run['order']} | {_seed(run)} | {' | '.join(cells)} |"


def _name(found: Results, method: str) -> str:
    settings = found["settings"]
    if method == LORA:
        return f"LoRA of rank {settings['rank']}"
    return f"core, p = {settings['p']}, phi = {settings['phi']}, k = {settings['k']}"


def _forgetting(run: Results, other: Results) -> str:
    merged = {**run, "methods": {**run["methods"], SHARE: other["methods"][SHARE]}}
    return next(f"{r.forgetting or 0:.2f}" for r in rows([merged]) if r.method == SHARE)


def _trained(found: Results, method: str) -> int:
    """Numbers of a task that is learned from data."""
    return int(found["methods"][method]["trainable"][found["tasks"][-1]])


def _over(found: Results, method: str, tasks: Sequence[str]) -> float:
    known = scores(found, method)
    return fmean(known[task] for task in tasks)


def _seed(found: Results) -> int:
    return int(found["environment"]["seed"])
