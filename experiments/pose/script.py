"""What all scripts of the experiment begin with."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from experiments.pose.jobs import Base, load_base
from experiments.pose.settings import FULL, INITIAL, ORDERS, QUICK, Size

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """Options that all scripts have.

    Args:
        out: file or folder of the results.
    """
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--data", type=Path, required=True, help="has backbones/ and meshes/")
    found.add_argument("--cache", type=Path, default=Path(".cache/pose"))
    found.add_argument("--out", type=Path, default=RESULTS / out)
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--quick", action="store_true", help="tiny: for tests")
    return found


def begin(chosen: argparse.Namespace) -> Base:
    """The backbone, with as many threads as were asked for and nothing printed."""
    torch.set_num_threads(chosen.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return load_base(chosen.data, chosen.cache)


def size_of(chosen: argparse.Namespace) -> Size:
    """How much of everything."""
    return QUICK if chosen.quick else FULL


def tasks_of(order: str, chosen: argparse.Namespace) -> tuple[str, ...]:
    """The categories of a stream; one that is learned from data where all is tiny."""
    few = next(iter(ORDERS.values()))[: INITIAL + 1]
    return tuple(t for t in ORDERS[order] if t in few) if chosen.quick else ORDERS[order]


def own_folder(cache: Path, size: Size, seed: int) -> Path:
    """Where the own LoRAs of a seed are kept, so that all scripts use the same."""
    return cache / "own" / f"{size.pixels}-{size.lower}-{size.steps}-{seed}"


def share_folder(cache: Path, size: Size, order: str, seed: int) -> Path:
    """Where the Share model of a stream is kept."""
    return cache / "share" / f"{size.pixels}-{size.lower}-{size.steps}-{order}-{seed}"
