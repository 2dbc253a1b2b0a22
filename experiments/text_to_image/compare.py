"""What the images of all methods show, and how far they are from those of the own LoRAs.

    python -m experiments.text_to_image.compare --data DATA/images --seeds 0 1 2

After ``run``: nothing is generated here. The distance that counts is from Share's images to the own
LoRA's from the same noise, against the distance that another noise makes with the same LoRA, and
against that of the same style's LoRA trained with another seed, from the same noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.common import environment
from experiments.common.runs import write
from experiments.text_to_image import script
from experiments.text_to_image.digits import NAMES
from experiments.text_to_image.judges import Judge, on_real_images, trained, verdict
from experiments.text_to_image.painting import load
from experiments.text_to_image.settings import TASKS
from torch import Tensor

OWN, OTHER = "own", "own, other noise"
LEARNED, END, BASE = "Share, when learned", "Share, at the end", "base"
Images = dict[str, dict[str, Tensor]]
"""What made them -> style -> images."""


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    chosen = parser.parse_args()
    script.begin(chosen)
    size = script.size(chosen)
    judge = trained(chosen.data, size, chosen.cache)
    folders = {s: script.seed_folder(chosen.cache, size, s) / "images" for s in chosen.seeds}
    found = {seed: gather(folder) for seed, folder in folders.items() if folder.is_dir()}
    real = on_real_images(judge, chosen.data)
    for seed, images in found.items():
        others = [i[OWN] for other, i in found.items() if other != seed]
        record = {
            "classifiers_on_real_images": real,
            "verdicts": verdicts(judge, images),
            "distances": {style: distances(judge, images, style, others) for style in TASKS},
            "environment": environment(seed),
        }
        write(chosen.out / "compare" / f"{seed}.json", record)
        _samples(chosen.out / "samples" / f"{seed}.npz", images)


def gather(folder: Path) -> Images:
    """Images of a seed: own LoRAs, Share when learned and at the end, each other method's last."""
    found: Images = {OWN: {}, OTHER: {}, LEARNED: {}, END: {}}
    for style in TASKS:
        found[OWN][style] = load(folder / "own" / style / "0.npy")
        found[OTHER][style] = load(folder / "own" / style / "1.npy")
    for method in sorted(p.name for p in folder.iterdir() if p.name != "own"):
        for style in TASKS:
            calls = sorted((folder / method / style).glob("*.npy"), key=lambda p: int(p.stem))
            if calls and method == "share_strict":
                found[LEARNED][style] = load(calls[0])
                found[END][style] = load(calls[-1])
            elif calls:
                name = BASE if method == "head_only" else method
                found.setdefault(name, {})[style] = load(calls[-1])
    return found


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
    found = {name: distance(judge, other, own) for name, other in pairs.items()}
    if style in images[END]:
        found["end to when learned"] = distance(judge, images[END][style], images[LEARNED][style])
    if retrained:
        found["own, trained with another seed"] = distance(judge, retrained[0][style], own)
    return found


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
        name: torch.stack([images[name][style][: len(NAMES), 0] for style in TASKS])
        for name in (BASE, OWN, LEARNED, END)
        if len(images.get(name, {})) == len(TASKS)
    }
    arrays: dict[str, Any] = {
        n: ((i + 1) * 127.5).round().to(torch.uint8).numpy() for n, i in shown.items()
    }
    np.savez_compressed(file, **arrays)


if __name__ == "__main__":
    main()
