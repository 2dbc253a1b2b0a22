"""The recipe for real pipelines: style LoRAs from the Hub, merged one after the other.

    python -m experiments real text_to_image --device cuda --dtype bfloat16 \\
        --pipeline stabilityai/stable-diffusion-xl-base-1.0 \\
        --lora pixel=nerijs/pixel-art-xl --lora papercut=TheLastBen/Papercut_SDXL \\
        --prompt "a lighthouse by the sea" --prompt "a fox" --k 64

Any pipeline of diffusers that loads LoRAs will do (Stable Diffusion 1.5, SDXL, FLUX). After each
merge every known style is exported from the Share model, loaded by the pipeline, and makes its
images again, with the same prompts and noise: ``step-<n>.png`` has the rows of the paper's figure.
``results.json`` says how far the images are from those of the original LoRA, against the distance
that another noise makes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from benchmarks.common import environment
from diffusers import DiffusionPipeline

from experiments.harness.results import write
from experiments.text_to_image.pictures import grid
from sharespace import Adapter, Share
from sharespace.errors import OptionError
from sharespace.formats import PlainLora, read_adapter, write_adapter

Images = Any
"""numpy [prompts, height, width, 3], 0 to 1."""
NOISE = 0
"""Seed of the images; the next one is the other noise."""


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pipeline", required=True, help="path or Hub id")
    parser.add_argument(
        "--lora", action="append", required=True, help="NAME=PATH or NAME=HUB-ID; in order"
    )
    parser.add_argument("--prompt", action="append", required=True)
    parser.add_argument("--out", type=Path, default=Path("text-to-image-real"))
    parser.add_argument("--k", type=int, default=64, help="cap of every subspace")
    parser.add_argument("--steps", type=int, default=30, help="of the sampler")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--side", type=int, help="pixels; default: the pipeline's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    return parser.parse_args(arguments)


@dataclass(eq=False)
class Stream:
    """What is known of each style so far."""

    own: dict[str, Images] = field(default_factory=dict)
    other_noise: dict[str, Images] = field(default_factory=dict)
    learned: dict[str, Images] = field(default_factory=dict)
    """By the Share model right after the style came."""
    steps: list[dict[str, Any]] = field(default_factory=list)


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    options = parsed(arguments)
    pipe = DiffusionPipeline.from_pretrained(
        options.pipeline, torch_dtype=getattr(torch, options.dtype)
    ).to(options.device)
    pipe.set_progress_bar_config(disable=True)
    stream, share = Stream(), None
    originals: list[Adapter] = []
    for name, source in loras(options.lora).items():
        originals.append(read_adapter(source, name))
        share = merged(share, originals[-1], options.k)
        share.save(options.out / "styles.share")
        _own_images(pipe, originals[-1], stream, options)
        stream.steps.append(step(pipe, share, originals, stream, options))
        record = {"steps": stream.steps, "environment": environment(NOISE)}
        write(options.out / "results.json", {"settings": _plain(options), **record})


def loras(given: Sequence[str]) -> dict[str, str]:
    """Name -> source.

    Raises:
        OptionError: one has no name, or a name comes twice.
    """
    pairs = [text.partition("=") for text in given]
    names = [name for name, _, _ in pairs]
    if not all(name and source for name, _, source in pairs) or len(set(names)) < len(names):
        raise OptionError("--lora", f"{list(given)}", "Give NAME=SOURCE, every name once")
    return {name: source for name, _, source in pairs}


def merged(share: Share | None, adapter: Adapter, k: int) -> Share:
    """With one more style."""
    return Share.from_adapters([adapter], k=k) if share is None else share.merge([adapter])


def paint(pipe: Any, folder: str | os.PathLike[str], noise: int, options: Any) -> Images:
    """Images of all prompts with a LoRA file, by the pipeline's own loader."""
    pipe.load_lora_weights(os.fspath(folder))
    try:
        size = {"height": options.side, "width": options.side} if options.side else {}
        images = [
            pipe(
                prompt,
                num_inference_steps=options.steps,
                guidance_scale=options.guidance,
                generator=torch.Generator().manual_seed(1000 * noise + i),
                output_type="np",
                **size,
            ).images[0]
            for i, prompt in enumerate(options.prompt)
        ]
        return np.stack(images)
    finally:
        pipe.unload_lora_weights()


def _own_images(pipe: Any, original: Adapter, stream: Stream, options: Any) -> None:
    """Of the original LoRA, in whatever form its file is, with two noises."""
    with TemporaryDirectory() as folder:
        place = Path(folder) / "own"
        write_adapter(place, PlainLora.from_adapter(original), to="diffusers")
        stream.own[original.name] = paint(pipe, place, NOISE, options)
        stream.other_noise[original.name] = paint(pipe, place, NOISE + 1, options)


def step(
    pipe: Any, share: Share, originals: Sequence[Adapter], stream: Stream, options: Any
) -> dict[str, Any]:
    """Images and distances of every known style after a merge."""
    now = {}
    for name in share.tasks:
        with TemporaryDirectory() as folder:
            share.export(name, Path(folder) / "lora", to="diffusers")
            now[name] = paint(pipe, Path(folder) / "lora", NOISE, options)
        stream.learned.setdefault(name, now[name])
    _picture(options, stream, now)
    errors = share.fidelity(originals).tasks
    return {
        name: {
            "relative_error": errors[name].relative_error,
            "to_own": distance(now[name], stream.own[name]),
            "to_own_when_learned": distance(stream.learned[name], stream.own[name]),
            "other_noise": distance(stream.other_noise[name], stream.own[name]),
        }
        for name in now
    }


def distance(first: Images, second: Images) -> float:
    """Mean squared difference of pixels, 0 to 1."""
    return float(np.mean((first.astype(np.float64) - second) ** 2))


def _picture(options: Any, stream: Stream, now: Mapping[str, Images]) -> None:
    columns = [f"{name}: {prompt}" for name in now for prompt in options.prompt]
    parts = {
        "the LoRA itself": stream.own,
        "Share, when\nit came": stream.learned,
        "Share, now": now,
    }
    rows = {text: [i for name in now for i in images[name]] for text, images in parts.items()}
    title = f"After {len(now)} styles"
    grid(options.out / f"step-{len(now)}.png", title, columns, rows, shape=(2.4, 2.4))


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
