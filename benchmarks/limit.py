"""The least that any method on dW must do: read the bytes, canonicalise, sketch each side once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import median_seconds
from sharespace.formats import read_adapter
from sharespace.linalg.truncated import OVERSAMPLING
from sharespace.subspace.layers import read_updates


def limit_seconds(paths: Sequence[Path], k: int, repeats: int) -> float:
    """Median time of the least work on these adapters; opening the files is not counted."""
    adapters = [read_adapter(p, p.name) for p in paths]
    modules = list(adapters[0].shapes)

    def work() -> list[tuple[Tensor, Tensor]]:
        found = []
        for module in modules:
            updates = read_updates(adapters, module, torch.device("cpu"))
            sketch = torch.randn(len(updates.sigma), k + OVERSAMPLING) * updates.sigma[:, None]
            found.append((updates.left @ sketch, updates.right @ sketch))
        return found

    return median_seconds(work, repeats)
