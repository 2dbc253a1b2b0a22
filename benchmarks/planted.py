"""Planted adapters, for *time and memory only*: real adapters are not like this.

Every module has a hidden subspace of ``rank`` directions a side that all tasks share, plus noise of
the adapters' own. The noise is such that a subspace of that rank leaves an error of about 0.135.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

NOISE = 0.095
"""Noise by signal on each side; both sides together: 0.095 * sqrt(2) = 0.134."""


@dataclass(frozen=True)
class Planted:
    """A set of adapters, q and v of each layer: modules of d x d."""

    tasks: int
    d: int
    r: int = 16
    rank: int = 32
    seed: int = 0
    layers: int = 2
    dtype: torch.dtype = torch.float32

    @property
    def modules(self) -> list[str]:
        return [f"model.layers.{i}.self_attn.{m}_proj" for i in range(self.layers) for m in "qv"]

    @property
    def label(self) -> str:
        return f"{self.tasks} adapters, r={self.r}, d={self.d}"

    def write(self, folder: Path) -> dict[str, Path]:
        """Real PEFT directories, task -> path."""
        generator = torch.Generator().manual_seed(self.seed)
        subspaces = {m: self._subspace(generator) for m in self.modules}
        paths = {f"task{i:03d}": folder / f"task{i:03d}" for i in range(self.tasks)}
        for path in paths.values():
            tensors = dict(self._adapter(subspaces, generator))
            path.mkdir(parents=True)
            save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
            (path / "adapter_config.json").write_text(json.dumps(self._config()))
        return paths

    def _subspace(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        sides = torch.randn(2, self.d, self.rank, generator=generator)
        left, right = torch.linalg.qr(sides)[0]
        return left, right

    def _adapter(
        self, subspaces: dict[str, tuple[Tensor, Tensor]], generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        for module, sides in subspaces.items():
            for side, basis in zip("BA", sides, strict=True):
                factor = self._factor(basis, generator)
                weight = factor if side == "B" else factor.mT
                key = f"base_model.model.{module}.lora_{side}.weight"
                yield key, weight.to(self.dtype).contiguous()

    def _factor(self, basis: Tensor, generator: torch.Generator) -> Tensor:
        signal = basis @ torch.randn(self.rank, self.r, generator=generator)
        noise = torch.randn(self.d, self.r, generator=generator)
        factor: Tensor = (signal + NOISE * (self.rank / self.d) ** 0.5 * noise) * self.d**-0.5
        return factor

    def _config(self) -> dict[str, object]:
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "planted",
            "r": self.r,
            "lora_alpha": 2 * self.r,
            "target_modules": ["q_proj", "v_proj"],
            "bias": "none",
        }
