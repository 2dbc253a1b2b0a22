"""What the paper claims of pose, beside what was measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.common.claims import Claim
from experiments.common.tables import Results, mean_of, numbers, rows
from experiments.pose.tables import mean_at

_SETTING = "rendered meshes and a MobileNet; the paper: Pascal3D+"
_NEEDED = ("head_only", "per_task_lora", "share_strict")


def claims(runs: Sequence[Results], scored: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Of all results.

    Args:
        runs: results files of ``run`` that have head only, own LoRA and strict Share.
        scored: results files of ``occluded``.
    """
    found = [near_lora(runs), forgetting(runs), trained(runs)]
    return [*found, occlusion(scored)] if scored else found


def _runs(found: Sequence[Any]) -> str:
    return "1 run" if len(found) == 1 else f"{len(found)} runs"


def near_lora(runs: Sequence[Results]) -> Claim:
    """Strict Share against per-task LoRA."""
    head, own, share = (fmean(mean_of(run, m) for run in runs) for m in _NEEDED)
    gain = (share - head) / (own - head)
    kept = share >= 0.98 * own and gain >= 0.9
    return Claim(
        "3D pose, categories learned one after the other: Share stays near per-task LoRA",
        "comparable",
        f"Acc at pi/6 {share:.1f} against {own:.1f}: {share / own:.1%}; of LoRA's gain over the "
        f"head alone ({head:.1f}) {gain:.0%} ({_runs(runs)})",
        "yes" if kept else "partly" if gain >= 0.5 else "no",
        _SETTING,
    )


def forgetting(runs: Sequence[Results]) -> Claim:
    """Points of strict Share."""
    lost = numbers([r.forgetting for run in runs for r in rows([run]) if r.method == _NEEDED[2]])
    return Claim(
        "3D pose: hardly any forgetting",
        "minimal",
        f"{fmean(lost):.2f} points, worst run {max(lost):.2f} ({_runs(lost)})",
        "yes" if max(lost) <= 1 else "partly",
        "k has room for all tasks",
    )


def trained(runs: Sequence[Results]) -> Claim:
    """Numbers trained for a category that is learned in the subspace."""
    last = runs[0]["tasks"][-1]
    own, share = (runs[0]["methods"][m]["trainable"][last] for m in _NEEDED[1:])
    return Claim(
        "3D pose: up to 100 times fewer trained parameters a task",
        "up to 100x",
        f"{own / share:.1f}x (against LoRA of rank 8)",
        "partly" if own / share >= 20 else "no",
        "layers of only 64 to 256 channels; what smaller cores keep: table How much a task trains",
    )


def occlusion(scored: Sequence[Mapping[str, Any]]) -> Claim:
    """Gain kept at every level of occlusion."""
    said, parts = [], []
    for level in ("L1", "L2", "L3"):
        head, own, share = (mean_at(scored, m, level, "acc_pi_6") for m in _NEEDED)
        parts.append((share - head) / (own - head))
        said.append(f"{level} {share:.1f} against {own:.1f}")
    return Claim(
        "3D pose: under occlusion Share stays near per-task LoRA, too",
        "comparable",
        f"Acc at pi/6: {', '.join(said)} ({_runs(scored)})",
        "yes" if min(parts) >= 0.9 else "partly" if min(parts) >= 0.5 else "no",
        "patches instead of objects of MSCOCO",
    )
