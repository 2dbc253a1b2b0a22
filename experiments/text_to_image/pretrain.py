"""The base model: trained on captioned digits once, then read from the cache.

The cache is by content: another image, caption, number or start is another model.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from experiments.text_to_image.digits import CAPTIONS, NAMES, Digits, read
from experiments.text_to_image.model import build, embed, pipeline, v_loss
from experiments.text_to_image.settings import Size

RATE = 2e-3
WITHOUT = 0.1
"""Part of the examples whose caption is left out, for guidance."""
AVERAGED = 0.995
"""The model is a moving average of the weights over about 1 / (1 - this) steps."""


def base(data: Path, size: Size, cache: Path) -> Any:
    """The trained pipeline; parameters are frozen."""
    digits = read(data, "train")
    folder = cache / f"base-{key(digits, size)}"
    if not (folder / "done").is_file():
        _save(train(digits, size), folder)
    pipe = pipeline(
        CLIPTextModel.from_pretrained(folder / "text_encoder"),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        UNet2DConditionModel.from_pretrained(folder / "unet"),
    )
    for part in (pipe.text_encoder, pipe.unet):
        part.eval().requires_grad_(False)
    return pipe


def key(digits: Digits, size: Size) -> str:
    """Of everything that decides what the model becomes."""
    digest = hashlib.sha256(digits.images.numpy().tobytes())
    numbers = (size.channels, size.pretraining, size.pretraining_batch, RATE, WITHOUT, AVERAGED)
    digest.update(repr((numbers, CAPTIONS, NAMES)).encode())
    untrained = build(size)
    # Entries with an underscore are diffusers' own notes, in an order that changes.
    noising = {k: v for k, v in untrained.scheduler.config.items() if not k.startswith("_")}
    digest.update(json.dumps(noising, sort_keys=True).encode())
    digest.update(untrained.tokenizer.backend_tokenizer.to_str().encode())
    for part in (untrained.unet, untrained.text_encoder):
        for name, value in part.state_dict().items():
            digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:12]


def train(digits: Digits, size: Size) -> Any:
    """UNet and text model together, from scratch."""
    torch.manual_seed(0)
    pipe = build(size)
    parts = torch.nn.ModuleList([pipe.unet, pipe.text_encoder]).train()
    average = {n: v.detach().clone() for n, v in parts.state_dict().items()}
    optimizer = torch.optim.AdamW(parts.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, size.pretraining, pct_start=0.1)
    began = time.process_time()
    for step in range(size.pretraining):
        loss = _loss(pipe, digits, size.pretraining_batch)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        _follow(average, parts.state_dict(), step)
        if step % 100 == 0:
            print(f"step {step}: {loss:.4f}, {time.process_time() - began:.0f} s", flush=True)
    parts.load_state_dict(average)
    return pipe


def _loss(pipe: Any, digits: Digits, count: int) -> Tensor:
    rows = torch.randint(len(digits), (count,))
    latents = pipe.vae.encode(digits.images[rows])
    table = embed(pipe, [c.format(n) for c in CAPTIONS for n in NAMES] + [""])
    wording = torch.randint(len(CAPTIONS), (count,))
    captions = wording * len(NAMES) + digits.labels[rows]
    captions[torch.rand(count) < WITHOUT] = len(table) - 1
    return v_loss(pipe.unet, pipe.scheduler, latents, table[captions])


@torch.no_grad()
def _follow(average: Mapping[str, Tensor], now: Mapping[str, Tensor], step: int) -> None:
    decay = min(AVERAGED, (1 + step) / (10 + step))
    for name, value in average.items():
        if value.is_floating_point():
            value.lerp_(now[name], 1 - decay)


def _save(pipe: Any, folder: Path) -> None:
    for part in ("unet", "text_encoder", "tokenizer"):
        getattr(pipe, part).save_pretrained(folder / part)
    (folder / "done").touch()
