"""Tiny stand-ins for what the real recipes need: models with random weights, of a seed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from sharespace.extras import require
from sharespace.learn.training import seeded


def main(arguments: Sequence[str], description: str | None, make: Callable[[Path], None]) -> None:
    """A stage whose only argument is the folder that is filled."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    make(parser.parse_args(arguments).folder)


def make_vit(folder: Path, side: int) -> None:
    """A checkpoint as google/vit-base-patch16-224-in21k is one: a ViT without a classifier.

    Args:
        folder: of the checkpoint and its image processor.
        side: pixels of an image.
    """
    transformers = require("transformers", "train")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=side,
        patch_size=8,
    )
    with seeded(0):
        transformers.ViTModel(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
