"""What the paper claims of text-to-image, beside what was measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.common.claims import Claim
from experiments.common.tables import Results, mean_of, numbers, rows
from experiments.text_to_image.compare import END, OTHER, OWN
from experiments.text_to_image.settings import INITIAL, TASKS
from experiments.text_to_image.tables import RETRAINED, Records, mean_distance, mean_verdict

_SETTING = "a UNet of a million numbers and digits; the paper: FLUX and styles of the Hub"
_WITHIN = 2.0
"""Points between Share and own LoRA, at most."""


def claims(runs: Sequence[Results], records: Records, adapters: Records) -> list[Claim]:
    """Of all results."""
    found = [
        classifiers(records),
        distance(records),
        forgetting(runs),
        kept(runs),
        trained(runs),
        merging(adapters),
    ]
    return [claim for claim in found if claim is not None]


def classifiers(records: Records) -> Claim | None:
    """Prompt and style accuracy at the end of the stream."""
    known = [r for r in records if r["verdicts"].get(END)]
    if not known:
        return None
    parts, worst = [], 0.0
    for kind in ("prompt", "style"):
        own, share = (fmean(mean_verdict(r, n, kind, TASKS) for r in known) for n in (OWN, END))
        parts.append(f"{kind} {share:.1f} against {own:.1f}")
        worst = max(worst, own - share)
    return Claim(
        "Text-to-image: one Share model's images are as good as those of separate LoRAs "
        "(figure of FLUX styles)",
        "shown, not scored",
        f"percent right by two classifiers: {', '.join(parts)} ({len(known)} seeds)",
        "yes" if worst <= _WITHIN else "no",
        _SETTING,
    )


def distance(records: Records) -> Claim | None:
    """Of Share's images to own LoRA's, against other noise and another training."""
    learned = TASKS[INITIAL:]
    share = mean_distance(records, END, "features", learned)
    noise = mean_distance(records, OTHER, "features", learned)
    retrained = mean_distance(records, RETRAINED, "features", learned)
    if share is None or noise is None:
        return None
    also = "" if retrained is None else f", to a LoRA trained with another seed {retrained:.3g}"
    return Claim(
        "Text-to-image: with the same noise, Share's images are those of the LoRA",
        "shown, not scored",
        f"feature distance to own LoRA's images, learned styles: {share:.3g}; other noise "
        f"{noise:.3g}{also}",
        "yes" if share <= (retrained or 0) else "partly" if share < noise else "no",
        _SETTING,
    )


def _finished(runs: Sequence[Results], *more: str) -> list[Results]:
    needed = ("share_strict", "per_task_lora", "head_only", *more)
    return [run for run in runs if all(n in run["methods"] for n in needed)]


def forgetting(runs: Sequence[Results]) -> Claim | None:
    """Points of strict Share."""
    known = _finished(runs)
    if not known:
        return None
    found = numbers([r.forgetting for r in rows(known) if r.method == "share_strict"])
    return Claim(
        "Text-to-image: styles learned earlier stay as they were",
        "shown, not scored",
        f"forgetting {fmean(found):.2f} points, worst run {max(found):.2f} ({len(found)} seeds)",
        "yes" if fmean(found) <= 1 else "no",
    )


def kept(runs: Sequence[Results]) -> Claim | None:
    """Part of own LoRA's score."""
    known = _finished(runs)
    if not known:
        return None
    share, own, base = (
        fmean(mean_of(r, n) for r in known) for n in ("share_strict", "per_task_lora", "head_only")
    )
    gain = (share - base) / (own - base) if own > base else 0.0
    return Claim(
        "Text-to-image: Share, learned style by style, keeps what LoRA reaches",
        "comparable",
        f"{share:.1f} against {own:.1f} (right digit in the right style): {share / own:.1%}; "
        f"{gain:.1%} of the gain over the base model ({base:.1f})",
        "yes" if share >= 0.98 * own and gain >= 0.9 else "partly" if gain >= 0.9 else "no",
        _SETTING,
    )


def trained(runs: Sequence[Results]) -> Claim | None:
    """Numbers trained for a style."""
    known = _finished(runs)
    if not known:
        return None
    lora, share = (
        known[0]["methods"][n]["trainable"][TASKS[-1]] for n in ("per_task_lora", "share_strict")
    )
    return Claim(
        "Text-to-image: many times fewer numbers trained for a style",
        "up to 100x",
        f"{lora:,} against {share:,}: {lora / share:.1f}x",
        "yes" if lora >= 100 * share else "partly" if lora >= 20 * share else "no",
        "LoRA of rank 8 here; the goal was 20x, and cores of that size keep less of the score",
    )


def merging(adapters: Records) -> Claim | None:
    """Finished LoRAs merged one after the other."""
    if not adapters:
        return None
    parts: list[str] = []
    best: Mapping[str, Any] = {}
    for k, found in adapters[0]["by_k"].items():
        came, end = (fmean(found[p].values()) for p in ("when_it_came", "at_the_end"))
        parts.append(f"k = {k}: {came:.1f} when they came, {end:.1f} at the end")
        best = found
    lost = fmean(best["when_it_came"].values()) - fmean(best["at_the_end"].values())
    return Claim(
        "Text-to-image: finished style LoRAs are merged into one model without loss",
        "shown, not scored",
        f"percent right: {'; '.join(parts)} (seed 0)",
        "yes" if lost <= _WITHIN else "no",
        _SETTING,
    )
