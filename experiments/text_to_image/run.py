"""All methods on the stream of styles, for several seeds.

    python -m experiments.text_to_image.run --data DATA/images --seeds 0 1 2

One file of results a seed; a method that is in it already is not run again, so that a run goes on
where it was cut off. The base model, the classifiers and the own LoRAs are made first, where the
cache lacks them. ``compare`` and ``summarise`` make tables and figures of it.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

from experiments.common import variant
from experiments.common.methods import METHODS
from experiments.common.runs import Run, run_methods
from experiments.text_to_image import lora, script
from experiments.text_to_image.jobs import Studio, make_jobs, open_studio
from experiments.text_to_image.settings import TASKS, Size, settings

from sharespace.compare import TaskJob

USED = (
    *("head_only", "per_task_lora", "share_strict", "mean_adapter", "own_svd", "joint_lora"),
    *("sequential_lora", "random_basis"),
)
"""Methods, unless others are named."""
ORDER = "styles"


def options() -> argparse.Namespace:
    parser = script.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(USED))
    variant.add_options(parser)
    return parser.parse_args()


def main() -> None:
    chosen = options()
    script.begin(chosen)
    size = script.size(chosen)
    studio = cache(partial(open_studio, chosen.data, size, chosen.cache))
    for seed in chosen.seeds:
        run(studio, size, seed, chosen)


def run(studio: Callable[[], Studio], size: Size, seed: int, chosen: argparse.Namespace) -> None:
    """One seed, method by method, each with a folder for its images."""
    folder = script.seed_folder(chosen.cache, size, seed)
    found = Run(
        folder=chosen.out / "runs",
        order=ORDER,
        tasks=TASKS,
        base="diffusers UNet2DConditionModel, pretrained here",
        settings=variant.vary(settings(size, seed), chosen, len(TASKS)),
        own=variant.own_folder(folder / "own", chosen),
        size=asdict(size),
        store=None if variant.is_varied(chosen) else folder / "share",
    )
    images = folder / (f"images-{chosen.out.name}" if variant.is_varied(chosen) else "images")
    _own_loras(studio, found, images)
    for name in chosen.methods:
        run_methods(found, partial(_jobs, studio, images / name), [name])


def _own_loras(studio: Callable[[], Studio], found: Run, images: Path) -> None:
    for style in TASKS:
        place = found.own / style
        if not (place / "own.json").is_file():
            lora.make(studio(), style, found.settings, place, images / "own")
            print(f"seed {found.settings.seed}: own LoRA of {style}", flush=True)


def _jobs(studio: Callable[[], Studio], images: Path) -> list[TaskJob]:
    shutil.rmtree(images, ignore_errors=True)
    return make_jobs(studio(), images)


if __name__ == "__main__":
    main()
