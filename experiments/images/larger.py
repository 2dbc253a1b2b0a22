"""The table of larger cores: what more trained numbers than a twentieth of LoRA's give."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from experiments.common.tables import Results, scores
from experiments.images.settings import INITIAL


def larger_table(runs: Sequence[Results], larger: Sequence[Results], base: str) -> str:
    """The tasks learned in the subspace, with the cores of ``runs`` and with other sizes.

    Args:
        runs: with head_only, per_task_lora and share_strict.
        larger: share_strict of the same streams and seeds, with other p and phi.
        base: for the heading.
    """
    lines = [
        f"## Larger cores ({base})",
        "",
        f"Mean over the tasks that are learned in the subspace (all but the first {INITIAL}), one "
        "run a line.",
        "",
        "| stream | seed | p | phi | head only | own LoRA | Share | of LoRA's gain "
        "| numbers trained, LoRA / Share |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        again = [found for found in larger if _same(found, run)]
        if again:
            lines += [_line(run, found) for found in (run, *again)]
    return "\n".join(lines) + "\n"


def _same(found: Results, run: Results) -> bool:
    """Of the same stream and seed."""
    seeds = (found["environment"]["seed"], run["environment"]["seed"])
    return bool(found["order"] == run["order"] and seeds[0] == seeds[1])


def _line(run: Results, found: Results) -> str:
    """Share of one results file, beside the other methods of its stream."""
    tasks = run["tasks"][INITIAL:]
    head, own = (fmean(scores(run, m)[t] for t in tasks) for m in ("head_only", "per_task_lora"))
    share = fmean(scores(found, "share_strict")[t] for t in tasks)
    gain = f"{(share - head) / (own - head):.0%}" if own > head else "-"
    lora = run["methods"]["per_task_lora"]["trainable"][tasks[-1]]
    core = found["methods"]["share_strict"]["trainable"][tasks[-1]]
    settings, seed = found["settings"], run["environment"]["seed"]
    place = f"| {run['order']} | {seed} | {settings['p']} | {settings['phi']} "
    numbers = f"{lora:,} / {core:,} = {lora / core:.1f}x"
    return f"{place}| {head:.2f} | {own:.2f} | {share:.2f} | {gain} | {numbers} |"
