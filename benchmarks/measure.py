"""One measure of error for every contender: of dW itself, whatever it was compressed from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.contenders import Built, Paths
from sharespace.formats import read_adapter


@dataclass(frozen=True)
class Errors:
    """|dW - dW^| / |dW| of every task, over all its modules together."""

    tasks: Mapping[str, float]

    @property
    def mean(self) -> float:
        return sum(self.tasks.values()) / len(self.tasks)

    @property
    def worst(self) -> float:
        return max(self.tasks.values())


def errors(built: Built, originals: Paths) -> Errors:
    """The errors of a contender's reconstructions against the files.

    A module that it lost counts as zero. A peer that does not know LoRA's scaling is given it.
    """
    return Errors({task: _task_error(built, task, path) for task, path in originals.items()})


def _task_error(built: Built, task: str, path: Path) -> float:
    adapter, found = read_adapter(path, task), built.factors(task)
    lost, norm = 0.0, 0.0
    for module in adapter.shapes:
        update = adapter.layer(module)
        exact = (update.up.double() * update.scaling, update.down.double())
        up, down = found.get(module, (update.up[:, :0], update.down[:0]))
        scaling = 1.0 if built.scaled else update.scaling
        norm += factored_norm(*exact) ** 2
        lost += (
            factored_norm(
                torch.cat([exact[0], -scaling * up.double()], dim=1),
                torch.cat([exact[1], down.double()]),
            )
            ** 2
        )
    return math.sqrt(lost / norm) if norm else 0.0


def factored_norm(up: Tensor, down: Tensor) -> float:
    """|up @ down| through the triangular factors: exact to rounding, no n x d matrix."""
    left = torch.linalg.qr(up, mode="r")[1]
    right = torch.linalg.qr(down.mT, mode="r")[1]
    return float((left @ right.mT).norm())


def tensor_bytes(folder: Path) -> int:
    """Bytes of all tensors that a save left in a folder, heads apart (no peer compresses them)."""
    return sum(_file_bytes(f) for f in folder.rglob("*.safetensors") if "classifier" not in f.name)


def _file_bytes(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
    return sum(t.numel() * t.element_size() for t in tensors)
