"""What the paper claims of images and of the kinds of stream, beside what was measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.common.claims import Claim
from experiments.common.tables import Results, mean_of, numbers, rows

from sharespace.stream.measures import ScoreMatrix, acc

_SETTING = "small models and sets; the paper: ViT-B/16 on CIFAR-100, Food-101, Caltech, Flowers"
_BOTH = ("share_strict", "per_task_lora")


def claims(
    groups: Mapping[str, Sequence[Results]], kinds: Sequence[Mapping[str, Any]]
) -> list[Claim]:
    """Of all results.

    Args:
        groups: name of a base -> its results files.
        kinds: results of ``kinds``.
    """
    found = [near_lora(name, runs) for name, runs in groups.items()]
    every = [run for runs in groups.values() for run in runs]
    found += [forgetting(every), joint(every), trained(every)]
    return [claim for claim in [*found, *kind_claims(kinds)] if claim is not None]


def _having(runs: Sequence[Results], *methods: str) -> list[Results]:
    return [run for run in runs if all(m in run["methods"] for m in methods)]


def near_lora(name: str, runs: Sequence[Results]) -> Claim | None:
    """Strict Share against per-task LoRA."""
    known = _having(runs, *_BOTH, "head_only")
    if not known:
        return None
    share, own = (fmean(mean_of(run, m) for run in known) for m in _BOTH)
    head = fmean(mean_of(run, "head_only") for run in known)
    # None where LoRA gains nothing, as in tests.
    gain = (share - head) / (own - head) if own > head else None
    holds = share >= 0.98 * own and gain is not None and gain >= 0.9
    part = "nothing" if gain is None else f"{gain:.0%}"
    return Claim(
        f"Images, learned one after the other: Share stays near per-task LoRA ({name})",
        "comparable",
        f"{share:.1f} against {own:.1f}: {share / own:.1%}; of LoRA's gain over the head alone "
        f"({head:.1f}) {part} ({len(known)} runs)",
        "yes" if holds else "partly",
        _SETTING,
    )


def forgetting(runs: Sequence[Results]) -> Claim | None:
    """Points of strict Share."""
    known = _having(runs, *_BOTH, "head_only")
    if not known:
        return None
    lost = numbers([r.forgetting for run in known for r in rows([run]) if r.method == _BOTH[0]])
    return Claim(
        "Images: hardly any forgetting",
        "minimal",
        f"{fmean(lost):.2f} points, worst run {max(lost):.2f} ({len(lost)} runs)",
        "yes" if max(lost) <= 1 else "partly",
        "k has room for all tasks",
    )


def joint(runs: Sequence[Results]) -> Claim | None:
    """Against one LoRA of all tasks."""
    known = _having(runs, "share_strict", "joint_lora", "head_only")
    if not known:
        return None
    head = fmean(mean_of(run, "head_only") for run in known)
    share, other = (fmean(mean_of(run, m) for run in known) for m in ("share_strict", "joint_lora"))
    return Claim(
        "Images: as good as joint training",
        "comparable",
        f"{share:.1f} against {other:.1f} for one joint LoRA ({len(known)} runs)",
        "not tested" if other < head - 5 else "yes" if share >= other - 0.3 else "no",
        "one LoRA of rank 8 for all tasks together; far below the head alone means that it "
        "collapsed at the rate of own LoRAs",
    )


def trained(runs: Sequence[Results]) -> Claim | None:
    """Numbers trained for a task that is learned in the subspace."""
    known = _having(runs, *_BOTH)
    if not known:
        return None
    ratios = set()
    for run in known:
        own, share = (run["methods"][m]["trainable"][run["tasks"][-1]] for m in reversed(_BOTH))
        ratios.add(own / share)
    return Claim(
        "Images: up to 100 times fewer trained parameters a task",
        "up to 100x",
        f"{min(ratios):.1f} to {max(ratios):.1f}x (against LoRA of rank 8)",
        "partly",
        "layers of 128 to 256 channels; what smaller cores keep: table How much a task trains",
    )


def kind_claims(records: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """One a base and stream."""
    places = dict.fromkeys((r["base"], r["order"]) for r in records)
    return [kind_claim([r for r in records if (r["base"], r["order"]) == p]) for p in places]


def kind_claim(records: Sequence[Mapping[str, Any]]) -> Claim:
    """Adapters only and hybrid, against own LoRAs; all seeds of one stream."""
    own = fmean(fmean(record["own"].values()) for record in records)
    means = {
        kind: fmean(acc(ScoreMatrix.from_record(r["kinds"][kind]["matrix"])) for r in records)
        for kind in records[0]["kinds"]
    }
    said = ", ".join(f"{kind} {mean:.1f}" for kind, mean in means.items())
    base, order = records[0]["base"], records[0]["order"]
    return Claim(
        f"Adapters and data may come in any mix ({base}, {order})",
        "adapters, data or both",
        f"{said}; own LoRAs {own:.1f} ({len(records)} runs)",
        "yes" if min(means.values()) >= 0.98 * own else "partly",
        "with k as for data alone",
    )
