"""What all scripts of the experiment begin with."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from experiments.text_stream.jobs import Base, load_base
from experiments.text_stream.settings import Size

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """Options that all scripts have.

    Args:
        out: file or folder of the results.
    """
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--data", type=Path, required=True, help="folder with one folder a set")
    found.add_argument("--base", help="path or Hub id of a BERT-like encoder; default MiniLM")
    found.add_argument("--cache", type=Path, default=Path(".cache/text_stream"))
    found.add_argument("--out", type=Path, default=RESULTS / out)
    found.add_argument("--threads", type=int, default=1)
    return found


def begin(chosen: argparse.Namespace) -> Base:
    """The base model, with as many threads as were asked for and nothing printed."""
    torch.set_num_threads(chosen.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return load_base(chosen.base)


def own_folder(cache: Path, base: Base, size: Size, seed: int) -> Path:
    """Where the own LoRAs of a seed are kept, so that all orders and scripts use the same."""
    return cache / "own" / f"{base.name.replace('/', '_')}-{size.steps}-{seed}"
