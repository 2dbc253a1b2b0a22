"""What is computed once and kept: files that are named by the content they are made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

Tensors = dict[str, Tensor]


def digest(*parts: Any) -> str:
    """Of tensors, arrays, modules with all their weights, and whatever ``repr`` says in full."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, nn.Module):
            for name, tensor in part.state_dict().items():
                state.update(name.encode() + _bytes(tensor))
        elif isinstance(part, Tensor | np.ndarray):
            state.update(repr(tuple(part.shape)).encode() + _bytes(torch.as_tensor(part)))
        else:
            state.update(repr(part).encode())
    return state.hexdigest()[:24]


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def cached(folder: Path, name: str, make: Callable[[], Tensors]) -> Tensors:
    """The tensors of a file; made where it is not there.

    Args:
        folder: of the cache.
        name: a ``digest`` of everything that the content depends on.
        make: computes the content.
    """
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part")
        save_file(make(), unfinished)
        unfinished.replace(file)
    return load_file(file)


@dataclass(frozen=True, eq=False)
class Features(Dataset[dict[str, Tensor]]):
    """Examples as what the frozen lower half of a base model makes of them.

    Only the upper half is adapted, so the lower one gives the same for every method and step.
    """

    hidden: Tensor
    """[examples, ...], before the first adapted layer."""
    labels: Tensor
    """[examples, ...]."""
    pooled: Tensor
    """float32 [examples, width], the base model's own features; width may be 0."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"hidden": self.hidden[index], "labels": self.labels[index]}

    def rows(self, wanted: slice) -> Features:
        """Some of the examples."""
        return Features(self.hidden[wanted], self.labels[wanted], self.pooled[wanted])

    def joined(self, after: Features) -> Features:
        """These examples, and others after them."""
        pairs = zip(vars(self).values(), vars(after).values(), strict=True)
        return Features(*(torch.cat(pair) for pair in pairs))


def stacked(examples: list[Mapping[str, Tensor]]) -> Tensors:
    """A batch: every field with the examples along the first side."""
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
