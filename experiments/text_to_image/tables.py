"""Tables of what the classifiers say and of distances between images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.common.tables import spread
from experiments.text_to_image.compare import BASE, END, LEARNED, OTHER, OWN
from experiments.text_to_image.settings import INITIAL, TASKS

Records = Sequence[Mapping[str, Any]]
"""Results files of ``compare`` or of ``adapters_stream``, one a seed."""
RETRAINED = "own, trained with another seed"
SHOWN = (BASE, OWN, OTHER, LEARNED, END)


def mean_verdict(record: Mapping[str, Any], name: str, kind: str, tasks: Sequence[str]) -> float:
    """Percent right, over the styles."""
    return fmean(record["verdicts"][name][style][kind] for style in tasks)


def verdict_table(records: Records) -> str:
    """What the two classifiers say."""
    real = records[0]["classifiers_on_real_images"]
    on_real = ", ".join(
        f"{kind} {fmean(real[s][kind] for s in TASKS):.1f}" for kind in ("prompt", "style", "both")
    )
    lines = [
        "## What the classifiers say",
        "",
        "Percent of the images, mean over the styles; in brackets the styles that Share "
        f"learned from images alone. On real test digits in these styles: {on_real}.",
        "",
        "| images of | right digit | right style | both | seeds |",
        "|---|---|---|---|---|",
    ]
    names = [*SHOWN, *sorted({n for r in records for n in r["verdicts"]} - set(SHOWN))]
    for name in names:
        known = [r for r in records if len(r["verdicts"].get(name, {})) == len(TASKS)]
        if known:
            cells = [_cell(known, name, kind) for kind in ("prompt", "style", "both")]
            lines.append(f"| {name} | {' | '.join(cells)} | {len(known)} |")
    return "\n".join(lines) + "\n"


def _cell(records: Records, name: str, kind: str) -> str:
    every = spread([mean_verdict(r, name, kind, TASKS) for r in records])
    learned = fmean(mean_verdict(r, name, kind, TASKS[INITIAL:]) for r in records)
    return f"{every} ({learned:.1f})"


def mean_distance(records: Records, pair: str, kind: str, tasks: Sequence[str]) -> float | None:
    """Over the styles and seeds; None where no file has it."""
    found = [
        r["distances"][s][pair][kind] for r in records for s in tasks if pair in r["distances"][s]
    ]
    return fmean(found) if found else None


def distance_table(records: Records) -> str:
    """How far images are from the own LoRA's."""
    lines = [
        "## Distance to the own LoRA's images",
        "",
        "Mean squared difference in pixels (-1 to 1) and in the classifiers' last hidden layer, "
        "same prompts; same noise, but for the row that says otherwise.",
        "",
        "| images of | pixels, compressed styles | pixels, learned styles | features, compressed "
        "| features, learned |",
        "|---|---|---|---|---|",
    ]
    for name in (LEARNED, END, RETRAINED, OTHER, BASE):
        cells = [
            mean_distance(records, name, kind, tasks)
            for kind in ("pixels", "features")
            for tasks in (TASKS[:INITIAL], TASKS[INITIAL:])
        ]
        shown = ["-" if c is None else f"{c:.3g}" for c in cells]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    moved = mean_distance(records, "end to when learned", "pixels", TASKS)
    if moved is not None:
        lines += [
            "",
            f"From when a style was learned to the end Share's pixels move by {moved:.2g}.",
        ]
    return "\n".join(lines) + "\n"


def adapters_table(records: Records) -> str:
    """The stream of finished LoRAs."""
    lines = [
        "## Finished LoRAs, merged one after the other",
        "",
        "Percent right in both, mean over the styles, and what is stored.",
        "",
        "| k | when it came | at the end | relative error of the weights, mean | bytes, against "
        "the LoRAs |",
        "|---|---|---|---|---|",
    ]
    for k in records[0]["by_k"]:
        mine = [r["by_k"][k] for r in records if k in r["by_k"]]
        came, end, error = (
            fmean(fmean(m[part].values()) for m in mine)
            for part in ("when_it_came", "at_the_end", "relative_error")
        )
        size = mine[0]["bytes"] / mine[0]["bytes_of_adapters"]
        lines.append(f"| {k} | {came:.1f} | {end:.1f} | {error:.3f} | {size:.2f} |")
    return "\n".join(lines) + "\n"


def real_table(record: Mapping[str, Any]) -> str:
    """The real Stable Diffusion adapter."""
    made, by_k = record["made_here"], record["by_k"]
    lines = [
        "## A real Stable Diffusion 1.5 LoRA",
        "",
        f"{record['modules']} modules, rank {record['ranks']}; compressed with "
        f"{made['relatives']} relatives and {made['strangers']} strangers made here.",
        "",
        "| k | error of the real one | of relatives | of strangers | exported and loaded by "
        "diffusers, largest difference |",
        "|---|---|---|---|---|",
    ]
    for row in by_k:
        errors = row["relative_error"]
        groups = [
            fmean(e for name, e in errors.items() if name.startswith(kind))
            for kind in ("real", "relative", "stranger")
        ]
        shown = " | ".join(f"{value:.3f}" for value in groups)
        loaded = row["exported_in_diffusers"]["largest_relative_difference"]
        lines.append(f"| {row['k']} | {shown} | {loaded:.1e} |")
    return "\n".join(lines) + "\n"


def tune_table(record: Mapping[str, Any]) -> str:
    """Settings tried on noise and test digits that no reported score uses."""
    lines = [
        "## Settings that were tried",
        "",
        "80 images a style from noise that no other table has, and the loss on test digits; seed "
        "0, the first style after the finished LoRAs.",
        "",
        "| style | setting | numbers | right digit | right style | both | loss |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for style, tried in record["styles"].items():
        for label, found in sorted(tried.items(), key=lambda item: item[1]["loss"]):
            cells = [f"{found[kind]:.1f}" for kind in ("prompt", "style", "both")]
            lines.append(
                f"| {style} | {label} | {found['trained']:,} | {' | '.join(cells)} "
                f"| {found['loss']:.4f} |"
            )
    return "\n".join(lines) + "\n"
