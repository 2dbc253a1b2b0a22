"""Rates, steps and sizes of LoRA and core, by images from noise that no reported score uses.

    python -m experiments.text_to_image.tune --data DATA/images --styles framed rotated \
        --core 10 4 1e-2 200 --core 16 8 1e-2 200 --lora 8 4e-3 200

Seed 0, after ``run``: the subspace is that of the own LoRAs of the styles that begin the stream.
Each setting trains on the style's training digits and is scored by the classifiers, and by the loss
on test digits in that style at fixed times and noise, which tells settings apart where 80 images do
not. One file, ``tune.json``; a setting that is in it already is not tried again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from benchmarks.common import environment
from experiments.common.runs import write
from experiments.common.trials import Trial, add_options, trials
from experiments.text_to_image import judges, lora, script
from experiments.text_to_image.digits import Digits, prompt, read
from experiments.text_to_image.jobs import Denoiser, Studio, open_studio, plain_unet
from experiments.text_to_image.model import embed, v_loss
from experiments.text_to_image.settings import INITIAL, TASKS, settings
from experiments.text_to_image.styles import styled
from torch import Tensor

from sharespace import Share
from sharespace.compare import ComparisonSettings
from sharespace.formats import read_adapter
from sharespace.learn import adapt, fit

NOISES = (2, 3)
"""Seeds of the noise; the reported images have 0 and 1."""
EXAMPLES = 256
"""Test digits that the loss is taken on."""


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = script.parser(__doc__)
    parser.add_argument("--styles", nargs="+", choices=TASKS, default=["framed", "rotated"])
    add_options(parser)
    parser.add_argument("--own", action="store_true", help="the own LoRAs of the run, too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    script.begin(chosen)
    size = script.size(chosen)
    studio = open_studio(chosen.data, size, chosen.cache)
    digits = read(chosen.data, "test").first(EXAMPLES)
    folder = script.seed_folder(chosen.cache, size, 0) / "own"
    share = subspace(folder, settings(size, 0).k)
    file = chosen.out / "tune.json"
    known = json.loads(file.read_text())["styles"] if file.is_file() else {}
    tried = [("own LoRA", partial(finished, studio, folder))] if chosen.own else []
    tried += [
        (t.label, partial(trained, studio, share, settings(size, 0), t)) for t in trials(chosen)
    ]
    for label, make in tried:
        for style in chosen.styles:
            mine = known.setdefault(style, {})
            if label not in mine:
                mine[label] = judged(studio, style, *make(style), digits)
                print(style, label, mine[label], flush=True)
                write(file, {"environment": environment(0), "noises": NOISES, "styles": known})


def subspace(folder: Path, k: int) -> Share:
    """Of the styles that come as finished LoRAs."""
    first = [read_adapter(folder / style, style) for style in TASKS[:INITIAL]]
    return Share.from_adapters(first, k=k, seed=0)


def judged(studio: Studio, style: str, unet: Any, count: int, digits: Digits) -> dict[str, Any]:
    """Numbers trained, percent of the images that are right, and the loss on test digits."""
    verdicts = []
    for noise in NOISES:
        images = studio.painter.paint(unet, noise)
        verdicts.append(judges.verdict(studio.judge, images, studio.painter.labels, style))
    return {
        "trained": count,
        "prompt": fmean(v.prompt for v in verdicts),
        "style": fmean(v.style for v in verdicts),
        "both": fmean(v.both for v in verdicts),
        "loss": held_out_loss(studio, unet, style, digits),
    }


def finished(studio: Studio, folder: Path, style: str) -> tuple[Any, int]:
    """The UNet with an own LoRA of the run, and how many numbers were trained for it."""
    count: int = json.loads((folder / style / "own.json").read_text())["trainable"]
    return lora.loaded(studio, folder / style), count


def trained(
    studio: Studio, share: Share, numbers: ComparisonSettings, trial: Trial, style: str
) -> tuple[Any, int]:
    """A UNet trained as the trial says, likewise."""
    changed = with_trial(numbers, trial)
    if trial.p is None:
        return trained_lora(studio, style, changed)
    return trained_core(studio, share, style, changed)


def with_trial(numbers: ComparisonSettings, trial: Trial) -> ComparisonSettings:
    """The experiment's numbers with those of one trial."""
    training = replace(numbers.lora, learning_rate=trial.rate, max_steps=trial.steps, seed=0)
    if trial.p is None:
        return replace(numbers, lora=training, rank=trial.rank, lora_alpha=trial.rank)
    return replace(
        numbers, coefficients=training, method=replace(numbers.method, p=trial.p, phi=trial.phi)
    )


def trained_lora(studio: Studio, style: str, numbers: ComparisonSettings) -> tuple[Any, int]:
    """A UNet with a LoRA in its weights, and how many numbers were trained."""
    unet = lora.with_lora(studio.unet(), numbers)
    count = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    fit(Denoiser(unet, studio.pipe.scheduler), studio.images(style), numbers.lora)
    unet.fuse_lora()
    unet.unload_lora()
    return unet, count


def trained_core(
    studio: Studio, share: Share, style: str, numbers: ComparisonSettings
) -> tuple[Any, int]:
    """A UNet with the learned update in its weights, likewise."""
    method = replace(numbers.method, heads=())
    learned = adapt(
        studio.denoiser(),
        share,
        studio.images(style),
        numbers.coefficients,
        task=style,
        method=method,
    )
    return plain_unet(learned.model), learned.trainable.total


@torch.no_grad()
def held_out_loss(studio: Studio, unet: Any, style: str, digits: Digits) -> float:
    """On test digits in the style, at the same times and noise for every setting."""
    latents: Tensor = studio.pipe.vae.encode(styled(style, digits.images))
    prompts = embed(studio.pipe, [prompt(int(label)) for label in digits.labels])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return float(v_loss(unet, studio.pipe.scheduler, latents, prompts))


if __name__ == "__main__":
    main()
