"""What all scripts of the experiment begin with."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from experiments.images.base import Base
from experiments.images.mobile import mobilenet
from experiments.images.settings import FULL, QUICK, STREAMS, Size, settings
from experiments.images.vit import small_vit

from sharespace.compare import ComparisonSettings

RESULTS = Path(__file__).parent / "results"
WEIGHTS = Path("backbones") / "mobilenet_v1_025_128"
IMAGES = "images"


def parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """Options that all scripts have.

    Args:
        out: file or folder of the results.
    """
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--data", type=Path, required=True, help="folder of images and backbones")
    found.add_argument("--base", choices=list(STREAMS), default="mobilenet")
    found.add_argument("--cache", type=Path, default=Path(".cache/images"))
    found.add_argument("--out", type=Path, default=RESULTS / out)
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--quick", action="store_true", help="tiny: for tests")
    return found


def begin(chosen: argparse.Namespace) -> tuple[Base, Size]:
    """The base model, with as many threads as were asked for and nothing printed."""
    torch.set_num_threads(chosen.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    size = QUICK if chosen.quick else FULL
    teacher = mobilenet(chosen.data / WEIGHTS, size.blocks, size.side)
    if chosen.base == "mobilenet":
        return teacher, size
    return small_vit(teacher, chosen.data / IMAGES, size, chosen.cache), size


def numbers(base: Base, name: str, size: Size, seed: int, tasks: int) -> ComparisonSettings:
    """The settings of a stream of so many tasks."""
    return settings(name, size, seed, tasks, base.targets, base.bf16)


def own_folder(cache: Path, base: Base, size: Size, seed: int) -> Path:
    """Where the own LoRAs of a seed are kept, so that all streams and scripts use the same."""
    return cache / "own" / f"{base.digest}-{size.steps}-{seed}"
