"""Base "vit": a small ViT of transformers, pretrained here on half of CIFAR-100's classes.

5,000 images are few for a ViT. Beside their labels it learns to give the features that the
ImageNet MobileNet has of them (a teacher; Hinton et al. 2015), so that a few minutes are enough.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.harness.cached import cached, digest
from experiments.images.base import Base, features, pixels
from experiments.images.sets import ImageSet, Source, read
from experiments.images.size import Size
from experiments.images.tasks import PRETRAINED
from sharespace.extras import require
from sharespace.learn.training import seeded

WIDTH, LAYERS, HEADS, PATCH, SIDE = 128, 6, 4, 8, 32
_BATCH = 128
_SHIFT = 3
"""Pixels that a training image is moved by, at most."""


class Lower(nn.Module):
    """Patches, positions and the first layers."""

    def __init__(self, vit: Any, layers: int) -> None:
        super().__init__()
        self.embeddings = vit.embeddings
        self.layer = nn.ModuleList(layers_of(vit)[:layers])

    def forward(self, images: Tensor) -> Tensor:
        states: Tensor = _through(self.layer, self.embeddings(images))
        return states


class Upper(nn.Module):
    """The other layers and the mean over the patches."""

    def __init__(self, vit: Any, layers: int) -> None:
        super().__init__()
        every = layers_of(vit)
        self.layer = nn.ModuleDict({str(i): every[i] for i in range(layers, len(every))})
        self.layernorm = vit.layernorm

    def forward(self, hidden: Tensor) -> Tensor:
        weight = next(self.layer.parameters())
        states = _through(self.layer.values(), hidden.to(weight.dtype))
        pooled: Tensor = self.layernorm(states).float().mean(1)
        return pooled


def layers_of(vit: Any) -> list[nn.Module]:
    """Its transformer layers; where they are depends on the release of transformers."""
    holder = vit.encoder.layer if hasattr(vit, "encoder") else vit.layers
    return list(holder)


def _through(layers: Any, states: Any) -> Any:
    for layer in layers:
        output = layer(states)
        states = output[0] if isinstance(output, tuple) else output
    return states


def small_vit(teacher: Base, data: Path, size: Size, cache: Path) -> Base:
    """The pretrained ViT, from the cache where it is there.

    Args:
        teacher: the ImageNet MobileNet.
        data: folder of image sets.
        size: how long it is pretrained, and how many layers are frozen.
        cache: folder; a file is named by what it was trained from.
    """
    source = Source("cifar100", classes=PRETRAINED)
    examples = read(source, data, "train", size.pretrained_on)
    shape = (size.pretraining, WIDTH, LAYERS, HEADS, PATCH, _BATCH, _SHIFT)
    name = digest(teacher.digest, examples.images, shape)

    def pretrained() -> dict[str, Tensor]:
        made = new_vit()
        pretrain(made, examples, features(examples, teacher, cache / "features").pooled, size)
        weights: dict[str, Tensor] = made.state_dict()
        return weights

    vit = new_vit()
    vit.load_state_dict(cached(cache / "vit", name, pretrained))
    vit.eval().requires_grad_(False).to(torch.bfloat16)
    return Base(
        name=f"small ViT ({WIDTH} wide, {LAYERS} layers), 50 classes of CIFAR-100",
        side=SIDE,
        lower=Lower(vit, size.layers).eval(),
        upper=Upper(vit, size.layers).eval(),
        targets=targets(vit),
        bf16=True,
    )


def new_vit() -> Any:
    """Random weights, of a seed."""
    transformers = require("transformers", "train")
    config = transformers.ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        image_size=SIDE,
        patch_size=PATCH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    with seeded(0):
        return transformers.ViTModel(config, add_pooling_layer=False)


def targets(vit: Any) -> tuple[str, ...]:
    """Query and value projections, by the ends of their names."""
    linear = [n for n, m in vit.named_modules() if isinstance(m, nn.Linear)]
    ends = {name.rpartition(".")[2] for name in linear}
    return ("query", "value") if "query" in ends else ("q_proj", "v_proj")


def pretrain(vit: Any, examples: ImageSet, taught: Tensor, size: Size) -> None:
    """Labels and a teacher's features at once, in place.

    Args:
        taught: float32 [examples, features], of the teacher.
    """
    torch.manual_seed(0)
    outputs = nn.Linear(WIDTH, examples.classes + taught.shape[1])
    wanted = (taught - taught.mean(0)) / taught.std(0).clamp(min=1e-6)
    images = pixels(examples.images, SIDE)
    weights = [*vit.parameters(), *outputs.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-3, total_steps=size.pretraining, pct_start=0.1
    )
    vit.train()
    for step in range(size.pretraining):
        rows = torch.randint(len(examples), (_BATCH,))
        with torch.autocast("cpu", torch.bfloat16):
            pooled = vit(pixel_values=moved(images[rows])).last_hidden_state.mean(1)
            both = outputs(pooled).float()
        logits, features_ = both[:, : examples.classes], both[:, examples.classes :]
        loss = nn.functional.cross_entropy(logits, examples.labels[rows], label_smoothing=0.1)
        loss = loss + (features_ - wanted[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            right = (logits.argmax(1) == examples.labels[rows]).float().mean()
            print(f"pretraining step {step}: loss {loss:.3f}, right {right:.2f}", flush=True)


def moved(images: Tensor) -> Tensor:
    """Half of them in a mirror, all moved by a few pixels."""
    mirrored = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images, images.flip(3))
    padded = nn.functional.pad(mirrored, [_SHIFT] * 4, mode="reflect")
    top, left = torch.randint(0, 2 * _SHIFT + 1, (2,)).tolist()
    return padded[..., top : top + SIDE, left : left + SIDE]
