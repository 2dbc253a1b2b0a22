"""The least that any method on dW must do: read the bytes, canonicalise, sketch each side once.

Out of core (``one_pass``) the canonical form is not needed: the factors' r x r Gram matrices carry
the norms, and the sketch is of the factors themselves. That is less work, so a lower line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import median_seconds
from sharespace.formats import read_adapter
from sharespace.linalg.dimension import Dimension
from sharespace.linalg.factor_chunks import chunks
from sharespace.linalg.truncated import OVERSAMPLING
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.build_layer import Build, read_updates
from sharespace.subspace.build_streamed import CHUNK_BYTES, rows_of
from sharespace.subspace.state import BuildSettings


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


def one_pass(adapters: Sequence[Adapter], k: int) -> None:
    """Every byte once, in chunks: to the compute dtype, norms, one sketch of each side."""
    build = Build(BuildSettings(), Dimension(k=k), torch.float32, torch.device("cpu"))
    for module in adapters[0].shapes:
        rows = rows_of(adapters, module, build, 8 * CHUNK_BYTES)
        tests = [torch.randn(side, k + OVERSAMPLING) for side in (rows.n, rows.d)]
        sums = [torch.zeros_like(t) for t in tests]
        for chunk in chunks(rows):
            for factor, target in zip((chunk.left, chunk.right), sums, strict=True):
                mix = torch.randn(factor.shape[0] * factor.shape[1], target.shape[1])
                target.addmm_(factor.flatten(0, 1).mT, mix)


def read_bytes(paths: Iterable[Path]) -> int:
    """Every byte of the weights files once, and nothing done with them; how many there are."""
    piece, total = bytearray(1 << 20), 0
    for path in paths:
        with (path / "adapter_model.safetensors").open("rb", buffering=0) as file:
            while count := file.readinto(piece):
                total += count
    return total
