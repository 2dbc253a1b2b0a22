"""What all scripts of the experiment begin with."""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import torch
import transformers
from experiments.text_to_image.settings import FULL, QUICK, TASKS, Size, settings, steps

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that all scripts have."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--data", type=Path, required=True, help="folder with mnist/compact.npz")
    found.add_argument("--cache", type=Path, default=Path(".cache/text_to_image"))
    found.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--quick", action="store_true", help="tiny: for tests")
    return found


def size(chosen: argparse.Namespace) -> Size:
    """How much of everything."""
    return QUICK if chosen.quick else FULL


def begin(chosen: argparse.Namespace) -> None:
    """As many threads as were asked for, and nothing printed by the libraries."""
    torch.set_num_threads(chosen.threads)
    for library in (transformers, diffusers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def seed_folder(cache: Path, size: Size, seed: int) -> Path:
    """Where own LoRAs, images and the Share model of a seed are kept.

    Its name says by what the own LoRAs are made, so that another size of the core finds them.
    """
    numbers = settings(size, 0)
    lengths = tuple(steps(style, size) for style in TASKS)
    known = (size, lengths, numbers.lora, numbers.rank, numbers.alpha, numbers.targets)
    return cache / f"{hashlib.sha256(repr(known).encode()).hexdigest()[:8]}-{seed}"
