"""A tiny base model with every kind of module, and adapters of it made by the real PEFT."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sharespace.formats import ExportOptions, PlainLora, write_adapter
from sharespace.subspace.adapter import Adapter

TOKENS = torch.arange(16).reshape(4, 4) % 9


class Experts(nn.Module):
    """Stacked experts: two parameters of one module, as MoE models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(2, 6, 4))
        self.down = nn.Parameter(torch.randn(2, 4, 6))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("bd,edh->ebh", x, self.up).relu()
        return torch.einsum("ebh,ehd->bd", hidden, self.down)


class Tiny(nn.Module):
    """One module of each kind that PEFT adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.image = nn.ModuleDict(
            {"conv": nn.Conv2d(2, 4, (3, 2)), "grouped": nn.Conv2d(4, 4, 1, groups=2)}
        )
        self.line = nn.ModuleDict({"conv": nn.Conv1d(2, 3, 3)})
        self.body = nn.ModuleDict(
            {"first": nn.Linear(8, 6), "second": nn.Linear(6, 6), "third": Conv1D(6, 6)}
        )
        self.attention = nn.ModuleDict({"multi": nn.MultiheadAttention(6, 2)})
        self.experts = Experts()
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        picture = self.image["grouped"](self.image["conv"](x.reshape(-1, 2, 4, 4)))
        line = self.line["conv"](x.reshape(len(x), 2, -1))
        hidden = self.body["second"](self.body["first"](x.mean(1)).tanh())
        hidden = hidden + self.body["third"](hidden)
        hidden = hidden + self.attention["multi"](hidden, hidden, hidden)[0]
        output: Tensor = self.head(hidden + self.experts(hidden)) + picture.mean() + line.mean()
        return output


def tiny() -> Tiny:
    """The same base model every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny().eval()


def save_random(path: Path, **config: Any) -> Path:
    """An adapter as if it had been trained: PEFT's, with random values in all that trains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(tiny(), peft.LoraConfig(**config)).eval()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            for key, parameter in model.named_parameters():
                if parameter.requires_grad:
                    noise = torch.randn_like(parameter) * 0.3
                    # Magnitudes are norms of rows: near where they start.
                    near = "magnitude" in key
                    parameter.data = parameter.data + noise.abs() if near else noise
        model.save_pretrained(path)
    return path


def output_of(path: Path) -> Tensor:
    """The tiny model's output under the adapter in a directory, by PEFT's own loader."""
    model = peft.PeftModel.from_pretrained(tiny(), path).eval()
    with torch.no_grad():
        output: Tensor = model(TOKENS)
    return output


def export(adapter: Adapter, path: Path, **options: Any) -> list[Path]:
    """Write all of an adapter in PEFT's form."""
    return write_adapter(
        path,
        PlainLora.from_adapter(adapter),
        ExportOptions(**options),
    )
