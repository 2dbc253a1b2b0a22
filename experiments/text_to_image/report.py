"""Tables, claims and figures of text-to-image: classifiers, distances, finished LoRAs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from experiments.harness.claims import (
    Claim,
    Said,
    count,
    fewer_numbers,
    near_lora,
    no_forgetting,
)
from experiments.harness.markdown import section
from experiments.harness.results import read, read_if_there
from experiments.harness.summarise import Report
from experiments.harness.tables import spread
from experiments.text_to_image.pictures import grid
from experiments.text_to_image.settings import INITIAL, TASKS

Records = Sequence[Mapping[str, Any]]
"""Results files of ``compare`` or of ``adapters``, one a seed."""
OWN, OTHER = "own", "own, other noise"
LEARNED, END, BASE = "Share, when learned", "Share, at the end", "base"
RETRAINED = "own, trained with another seed"
SHOWN = (BASE, OWN, OTHER, LEARNED, END)
ROWS = {
    BASE: "no adapter",
    OWN: "own LoRA\n(one a style)",
    LEARNED: "Share, right after\nlearning the style",
    END: "Share, after the\nlast style",
}
_SETTING = "a UNet of a million numbers and digits; the paper: FLUX and styles of the Hub"
_WITHIN = 2.0
"""Points between Share and own LoRA, at most."""


NO_FORGETTING = Said(
    "Text-to-image: styles learned earlier stay as they were", paper="shown, not scored"
)
NEAR = Said("Text-to-image: Share, learned style by style, keeps what LoRA reaches", _SETTING)
FEWER = Said(
    "Text-to-image: many times fewer numbers trained for a style",
    "the goal was 20x, and cores of that size keep less of the score",
    paper="up to 100x",
)


class TextToImage(Report):
    """See the package."""

    name = "text_to_image"

    def __init__(self, results: Path, figures: Path, options: argparse.Namespace) -> None:
        super().__init__(results, figures, options)
        self.compared, self.adapters = read(results / "compare"), read(results / "adapters")

    def own_tables(self) -> list[str]:
        real = read_if_there(self.results / "real_adapter.json")
        compared, adapters = self.compared, self.adapters
        return [
            *([verdict_table(compared), distance_table(compared)] if compared else []),
            *([adapters_table(adapters)] if adapters else []),
            *([real_table(real)] if real else []),
        ]

    def tune_table(self, record: Mapping[str, Any], base: str) -> str:
        del base  # There is one.
        return styles_table(record)

    def claims(self) -> list[Claim | None]:
        runs = self.all_runs
        return [
            classifiers_claim(self.compared),
            distance_claim(self.compared),
            no_forgetting(runs, NO_FORGETTING),
            near_lora(runs, NEAR, "right digit in the right style ", "the base model"),
            fewer_numbers(runs, FEWER),
            merging_claim(self.adapters),
        ]

    def order_figure(self, order: str) -> str:
        del order  # There is one, and the figure of the images is called by its name.
        return "scores"

    def draw(self) -> None:
        super().draw()
        samples = sorted((self.results / "samples").glob("*.npz"))
        if samples:
            draw_images(samples[0], self.figure("styles"))


def draw_images(file: Path, path: Path) -> None:
    """Two digits a style, by what made them; the same prompts and noise in every row."""
    with np.load(file) as arrays:
        images = {name: arrays[name] / 255 for name in ROWS if name in arrays}
    tasks = TASKS[: len(next(iter(images.values())))]
    digits = [(3 * i, 3 * i + 1) for i in range(len(tasks))]
    rows = {
        ROWS[name]: [np.hstack([styles[i][d % 10] for d in digits[i]]) for i in range(len(tasks))]
        for name, styles in images.items()
    }
    columns = [
        f"{style}\n({'finished LoRA' if i < INITIAL else 'learned here'})"
        for i, style in enumerate(tasks)
    ]
    title = f"One Share model for {len(tasks)} styles: same prompts and noise in every row"
    grid(path, title, columns, rows, shape=(1.6, 0.85))


def classifiers_claim(records: Records) -> Claim | None:
    """Prompt and style accuracy at the end of the stream."""
    judged = [r for r in records if r["verdicts"].get(END)]
    if not judged:
        return None
    parts, worst = [], 0.0
    for kind in ("prompt", "style"):
        own, share = (
            fmean(mean_verdict(r, n, kind, styles_of(records)) for r in judged) for n in (OWN, END)
        )
        parts.append(f"{kind} {share:.1f} against {own:.1f}")
        worst = max(worst, own - share)
    return Claim(
        "Text-to-image: one Share model's images are as good as those of separate LoRAs "
        "(figure of FLUX styles)",
        "shown, not scored",
        f"percent right by two classifiers: {', '.join(parts)} ({count(judged)})",
        "yes" if worst <= _WITHIN else "no",
        _SETTING,
    )


def distance_claim(records: Records) -> Claim | None:
    """Of Share's images to own LoRA's, against other noise and another training."""
    if not records:
        return None
    learned = styles_of(records)[INITIAL:]
    share, noise, retrained = (
        mean_distance(records, pair, "features", learned) for pair in (END, OTHER, RETRAINED)
    )
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


def merging_claim(records: Records) -> Claim | None:
    """Finished LoRAs merged one after the other."""
    if not records:
        return None
    parts, lost = [], 0.0
    for k, by_part in records[0]["by_k"].items():
        came, end = (fmean(by_part[p].values()) for p in ("when_it_came", "at_the_end"))
        parts.append(f"k = {k}: {came:.1f} when they came, {end:.1f} at the end")
        lost = came - end
    return Claim(
        "Text-to-image: finished style LoRAs are merged into one model without loss",
        "shown, not scored",
        f"percent right: {'; '.join(parts)} (seed 0)",
        "yes" if lost <= _WITHIN else "no",
        _SETTING,
    )


def styles_of(records: Records) -> list[str]:
    """In the order of the stream."""
    return list(records[0]["distances"])


def mean_verdict(record: Mapping[str, Any], name: str, kind: str, tasks: Sequence[str]) -> float:
    """Percent right, over the styles."""
    return fmean(record["verdicts"][name][style][kind] for style in tasks)


def verdict_table(records: Records) -> str:
    """What the two classifiers say."""
    tasks = styles_of(records)
    real = records[0]["classifiers_on_real_images"]
    on_real = ", ".join(
        f"{kind} {fmean(real[s][kind] for s in tasks):.1f}" for kind in ("prompt", "style", "both")
    )
    rows = []
    names = [*SHOWN, *sorted({n for r in records for n in r["verdicts"]} - set(SHOWN))]
    for name in names:
        judged = [r for r in records if len(r["verdicts"].get(name, {})) == len(tasks)]
        if judged:
            cells = [_cell(judged, name, kind) for kind in ("prompt", "style", "both")]
            rows.append([name, *cells, len(judged)])
    return section(
        "## What the classifiers say",
        "Percent of the images, mean over the styles; in brackets the styles that Share "
        f"learned from images alone. On real test digits in these styles: {on_real}.",
        "images of | right digit | right style | both | seeds",
        rows,
    )


def _cell(records: Records, name: str, kind: str) -> str:
    tasks = styles_of(records)
    every = spread([mean_verdict(r, name, kind, tasks) for r in records])
    learned = fmean(mean_verdict(r, name, kind, tasks[INITIAL:]) for r in records)
    return f"{every} ({learned:.1f})"


def mean_distance(records: Records, pair: str, kind: str, tasks: Sequence[str]) -> float | None:
    """Over the styles and seeds; None where no file has it."""
    apart = [
        r["distances"][s][pair][kind] for r in records for s in tasks if pair in r["distances"][s]
    ]
    return fmean(apart) if apart else None


def distance_table(records: Records) -> str:
    """How far images are from the own LoRA's."""
    styles = styles_of(records)
    rows = []
    for name in (LEARNED, END, RETRAINED, OTHER, BASE):
        cells = [
            mean_distance(records, name, kind, tasks)
            for kind in ("pixels", "features")
            for tasks in (styles[:INITIAL], styles[INITIAL:])
        ]
        rows.append([name, *("-" if c is None else f"{c:.3g}" for c in cells)])
    whole = section(
        "## Distance to the own LoRA's images",
        "Mean squared difference in pixels (-1 to 1) and in the classifiers' last hidden layer, "
        "same prompts; same noise, but for the row that says otherwise.",
        "images of | pixels, compressed styles | pixels, learned styles | features, compressed "
        "| features, learned",
        rows,
    )
    moved = mean_distance(records, "end to when learned", "pixels", styles)
    if moved is None:
        return whole
    said = f"From when a style was learned to the end Share's pixels move by {moved:.2g}."
    return f"{whole}\n{said}\n"


def adapters_table(records: Records) -> str:
    """The stream of finished LoRAs."""
    rows = []
    for k in records[0]["by_k"]:
        mine = [r["by_k"][k] for r in records if k in r["by_k"]]
        came, end, error = (
            fmean(fmean(m[part].values()) for m in mine)
            for part in ("when_it_came", "at_the_end", "relative_error")
        )
        size = mine[0]["bytes"] / mine[0]["bytes_of_adapters"]
        rows.append([k, f"{came:.1f}", f"{end:.1f}", f"{error:.3f}", f"{size:.2f}"])
    return section(
        "## Finished LoRAs, merged one after the other",
        "Percent right in both, mean over the styles, and what is stored.",
        "k | when it came | at the end | relative error of the weights, mean | bytes, against "
        "the LoRAs",
        rows,
    )


def real_table(record: Mapping[str, Any]) -> str:
    """The real Stable Diffusion adapter."""
    made, by_k = record["made_here"], record["by_k"]
    rows = []
    for row in by_k:
        errors = row["relative_error"]
        groups = [
            fmean(e for name, e in errors.items() if name.startswith(kind))
            for kind in ("real", "copy", "random")
        ]
        loaded = row["exported_in_diffusers"]["largest_relative_difference"]
        rows.append([row["k"], *(f"{value:.3f}" for value in groups), f"{loaded:.1e}"])
    return section(
        "## A real Stable Diffusion 1.5 LoRA",
        f"{record['modules']} modules, rank {record['ranks']}; compressed with {made['copies']} "
        f"noisy copies of it and {made['random']} random adapters, made here.",
        "k | error of the real one | of noisy copies | of random ones | exported and loaded by "
        "diffusers, largest difference",
        rows,
    )


def styles_table(record: Mapping[str, Any]) -> str:
    """Settings tried on noise and test digits that no reported score uses."""
    rows = []
    tried = [
        (s, label, m) for label, by_style in record["trials"].items() for s, m in by_style.items()
    ]
    for style, label, measured in sorted(tried, key=lambda row: (row[0], row[2]["loss"])):
        cells = [f"{measured[kind]:.1f}" for kind in ("prompt", "style", "both")]
        rows.append([style, label, f"{measured['trained']:,}", *cells, f"{measured['loss']:.4f}"])
    return section(
        "## Settings that were tried",
        "80 images a style from noise that no other table has, and the loss on test digits; seed "
        "0, the first style after the finished LoRAs.",
        "style | setting | numbers | right digit | right style | both | loss",
        rows,
        "llr",
    )
