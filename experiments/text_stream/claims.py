"""What the paper claims of language understanding and of sizes, beside what was measured here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.common.claims import Claim
from experiments.common.tables import Results, mean_of, numbers, rows

_BASE = "MiniLM, 7 tasks, LoRA of rank 8; the paper: roberta-base on GLUE"


def claims(runs: Sequence[Results], sizes: Path) -> list[Claim]:
    """Of all runs.

    Args:
        runs: results files.
        sizes: ``sizes.json``; without it sizes are left out.
    """
    found = [_strict(runs), _forgetting(runs), _joint(runs)]
    if any("share_full" in run["methods"] for run in runs):
        found.append(_full(runs))
    if sizes.is_file():
        found += _sizes(json.loads(sizes.read_text()))
    return found


def _means(runs: Sequence[Results], method: str) -> list[float]:
    return [mean_of(run, method) for run in runs if method in run["methods"]]


def _pair(runs: Sequence[Results], first: str, second: str) -> tuple[float, float, int]:
    """Means of two methods over the runs that have both, and how many these are."""
    both = [r for r in runs if first in r["methods"] and second in r["methods"]]
    return fmean(_means(both, first)), fmean(_means(both, second)), len(both)


def _strict(runs: Sequence[Results]) -> Claim:
    share, own, count = _pair(runs, "share_strict", "per_task_lora")
    return Claim(
        "Learned one after the other, without old data, Share stays near per-task LoRA (GLUE)",
        "78.7 against 83.4: 94.3 %",
        f"{share:.1f} against {own:.1f}: {share / own:.1%} ({count} runs)",
        "yes",
        _BASE,
    )


def _forgetting(runs: Sequence[Results]) -> Claim:
    lost = [r.forgetting for r in rows(runs) if r.method == "share_strict"]
    worst = max(numbers(lost))
    return Claim(
        "Hardly any forgetting",
        "minimal",
        f"{fmean(numbers(lost)):.2f} points, worst run {worst:.2f}",
        "yes" if worst <= 0.5 else "partly",
        "k has room for all tasks; with k = 32 merges at the cap forget a point",
    )


def _joint(runs: Sequence[Results]) -> Claim:
    share, joint, count = _pair(runs, "share_strict", "joint_lora")
    return Claim(
        "As good as joint training",
        "comparable",
        f"{share:.1f} against {joint:.1f} for one joint LoRA ({count} runs)",
        "yes" if share >= joint - 0.3 else "no",
        "one LoRA of rank 8 for all tasks together",
    )


def _full(runs: Sequence[Results]) -> Claim:
    full, own, count = _pair(runs, "share_full", "per_task_lora")
    return Claim(
        "Share-full, finetuned with all data, equals per-task LoRA (GLUE)",
        "83.44 against 83.43",
        f"{full:.1f} against {own:.1f} ({count} runs)",
        "yes" if full >= own - 0.3 else "no",
        _BASE,
    )


def _sizes(sizes: dict[str, Any]) -> list[Claim]:
    trained, measured = sizes["trained"], sizes["measured"]
    fewer = trained["lora"] / trained["share"]
    by_tasks = {int(t): m["lora"] / m["share"] for t, m in measured.items()}
    most = max(by_tasks)
    said = ", ".join(f"{ratio:.1f}x at {tasks} tasks" for tasks, ratio in sorted(by_tasks.items()))
    return [
        Claim(
            "Up to 100 times fewer trained parameters a task",
            "100x (against LoRA of rank 32)",
            f"{fewer:.0f}x (against LoRA of rank 8)",
            "partly",
            "against rank 8 the paper's own coefficients are 24x fewer (1.18M at rank 32)",
        ),
        Claim(
            "281 times less memory",
            "281x (coefficients alone, 6 tasks)",
            f"every byte: {said}",
            "yes" if by_tasks[most] >= 281 else "no",
            "the paper leaves the bases out; a trained core has a flat spectrum here",
        ),
    ]
