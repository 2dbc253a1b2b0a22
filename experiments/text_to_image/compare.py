"""What the images of all methods show, and how far they are from those of the own LoRAs.

    python -m experiments compare text_to_image --data DATA/images --seeds 0 1 2

After ``run``: nothing is generated here. The distance that counts is from Share's images to the own
LoRA's from the same noise, against the distance that another noise makes with the same LoRA, and
against that of the same style's LoRA trained with another seed, from the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.common import environment
from torch import Tensor

from experiments.harness.experiment import opened, parser
from experiments.harness.results import write
from experiments.text_to_image.digits import NAMES
from experiments.text_to_image.experiment import TextToImage
from experiments.text_to_image.judges import Judge, on_real_images, trained, verdict
from experiments.text_to_image.painting import load
from experiments.text_to_image.report import BASE, END, LEARNED, OTHER, OWN, RETRAINED

Images = dict[str, dict[str, Tensor]]
"""What made them -> style -> images."""


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    options = parser(TextToImage, __doc__).parse_args(arguments)
    experiment: TextToImage = opened(TextToImage, options)
    judge = trained(options.data, experiment.size, options.cache)
    folders = {seed: experiment.images_folder(seed) for seed in options.seeds}
    by_seed = {
        seed: gather(folder, experiment.styles)
        for seed, folder in folders.items()
        if folder.is_dir()
    }
    real = on_real_images(judge, options.data)
    for seed, images in by_seed.items():
        retrained = [theirs[OWN] for s, theirs in by_seed.items() if s != seed]
        record = {
            "classifiers_on_real_images": real,
            "verdicts": verdicts(judge, images),
            "distances": {
                style: distances(judge, images, style, retrained) for style in images[OWN]
            },
            "environment": environment(seed),
        }
        write(experiment.results("compare") / f"{seed}.json", record)
        _samples(experiment.results("samples") / f"{seed}.npz", images)


def gather(folder: Path, styles: Sequence[str]) -> Images:
    """Images of a seed: own LoRAs, Share when learned and at the end, each other method's last."""
    images: Images = {OWN: {}, OTHER: {}, LEARNED: {}, END: {}}
    for style in styles:
        images[OWN][style] = load(folder / "own" / style / "0.npy")
        images[OTHER][style] = load(folder / "own" / style / "1.npy")
    for method in sorted(p.name for p in folder.iterdir() if p.name != "own"):
        for style in styles:
            calls = sorted((folder / method / style).glob("*.npy"), key=lambda p: int(p.stem))
            if calls and method == "share_strict":
                images[LEARNED][style] = load(calls[0])
                images[END][style] = load(calls[-1])
            elif calls:
                name = BASE if method == "head_only" else method
                images.setdefault(name, {})[style] = load(calls[-1])
    return images


def verdicts(judge: Judge, images: Images) -> dict[str, Any]:
    """What made them -> style -> percent right in prompt, in style, in both."""
    return {
        name: {s: vars(verdict(judge, i, _labels(i), s)) for s, i in by_style.items()}
        for name, by_style in images.items()
    }


def _labels(images: Tensor) -> Tensor:
    return torch.arange(len(images)) % len(NAMES)


def distances(
    judge: Judge, images: Images, style: str, retrained: list[dict[str, Tensor]]
) -> dict[str, Any]:
    """Mean squared distances to the own LoRA's images, in pixels and in features."""
    own = images[OWN][style]
    pairs = {n: images[n][style] for n in (LEARNED, END, OTHER, BASE) if style in images[n]}
    apart = {name: distance(judge, made, own) for name, made in pairs.items()}
    if style in images[END]:
        apart["end to when learned"] = distance(judge, images[END][style], images[LEARNED][style])
    if retrained:
        apart[RETRAINED] = distance(judge, retrained[0][style], own)
    return apart


@torch.no_grad()
def distance(judge: Judge, first: Tensor, second: Tensor) -> dict[str, float]:
    """Mean over images, and over pixels or features."""
    hidden = judge.features(first) - judge.features(second)
    return {
        "pixels": float((first - second).square().mean()),
        "features": float(hidden.square().mean()),
    }


def _samples(file: Path, images: Images) -> None:
    """One image a digit, for the figures: uint8 [styles, digits, side, side] by what made them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shown = {
        name: torch.stack([made[: len(NAMES), 0] for made in images[name].values()])
        for name in (BASE, OWN, LEARNED, END)
        if len(images.get(name, {})) == len(images[OWN])
    }
    arrays: dict[str, Any] = {
        n: ((i + 1) * 127.5).round().to(torch.uint8).numpy() for n, i in shown.items()
    }
    np.savez_compressed(file, **arrays)
