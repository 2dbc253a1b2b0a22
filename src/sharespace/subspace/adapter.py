"""An adapter as sharespace sees it: low-rank updates by module, and all else it carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sharespace.shapes import ModuleShape


@dataclass(frozen=True)
class BaseModel:
    """Which pretrained model an adapter or a Share model belongs to."""

    id: str | None = None
    """Hub id or path as the adapter states it; None where the format does not say."""
    revision: str | None = None


@dataclass(frozen=True, eq=False)
class LayerUpdate:
    """One module's update dW = scaling * up @ down."""

    up: Tensor
    """n x r (LoRA's B; a convolution's output side)."""
    down: Tensor
    """r x d (LoRA's A, flattened over input channels and kernel)."""
    scaling: float = 1.0


@dataclass(frozen=True)
class Provenance:
    """Where a task came from."""

    format: str
    """``"peft"``, ``"diffusers"``, ``"kohya"`` or ``"learned"``."""
    source: str = ""
    """File name or Hub id, never an absolute path of the machine it was read on."""
    sha256: str | None = None
    """Of the weights file, where there is one."""


LEARNED = Provenance("learned")
"""Of a task that was trained here and never was a file."""


@runtime_checkable
class Divisible(Protocol):
    """Reads updates from somewhere else, and can be cut down to what one module needs."""

    def __call__(self, module: str) -> LayerUpdate: ...

    def part(self, module: str) -> Callable[[str], LayerUpdate]:
        """Reads this module only, from any directory, also where it is pickled to."""
        ...


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter, read lazily: nothing but headers is in memory until ``layer`` is called."""

    name: str
    """The task's name; any non-empty text."""
    base: BaseModel
    shapes: Mapping[str, ModuleShape]
    """Adapted module (its path in the base model) -> shape."""
    ranks: Mapping[str, int]
    """Adapted module -> r, from the tensors."""
    dtype: torch.dtype
    """Of the factors; the promoted one where they differ."""
    layer: Callable[[str], LayerUpdate]
    """Reads one module's update."""
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """Everything that is not compressed (heads, biases, embeddings, DoRA magnitudes ...),
    by the key it has in the file; read on access, given back bit for bit on export."""
    config: Mapping[str, object] = field(default_factory=dict)
    """JSON values that an export needs: the fields of ``adapter_config.json`` for PEFT."""
    provenance: Provenance = LEARNED
    nbytes: int = 0
    """Bytes of all its tensors, as the adapter stores them."""

    def __post_init__(self) -> None:
        for name in ("shapes", "ranks", "config"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def with_name(self, name: str) -> Adapter:
        """The adapter under another name."""
        return replace(self, name=name)

    def part(self, module: str) -> Adapter:
        """The adapter with one module and nothing beside it, to be sent to another process.

        Where it is a file, the part says where in the file to read; otherwise it holds tensors.
        """
        layer = self.layer
        one = layer.part(module) if isinstance(layer, Divisible) else None
        return Adapter(
            name=self.name,
            base=self.base,
            shapes={module: self.shapes[module]},
            ranks={module: self.ranks[module]},
            dtype=self.dtype,
            layer=one or {module: layer(module)}.__getitem__,
            provenance=self.provenance,
        )

    @classmethod
    def from_updates(
        cls,
        name: str,
        updates: Mapping[str, LayerUpdate],
        *,
        base: BaseModel | None = None,
        shapes: Mapping[str, ModuleShape] | None = None,
        kept: Mapping[str, Tensor] | None = None,
        config: Mapping[str, object] | None = None,
        provenance: Provenance | None = None,
    ) -> Adapter:
        """An adapter from updates in memory (a task learned from data, or a test's).

        ``shapes`` is only needed where a module is a convolution.
        """
        kept = dict(kept or {})
        found = {m: ModuleShape(u.up.shape[0], u.down.shape[1]) for m, u in updates.items()}
        found.update(shapes or {})
        dtype = torch.float32
        for i, u in enumerate(updates.values()):
            pair = torch.promote_types(u.up.dtype, u.down.dtype)
            dtype = torch.promote_types(dtype, pair) if i else pair
        tensors = [t for u in updates.values() for t in (u.up, u.down)] + list(kept.values())
        return cls(
            name=name,
            base=base or BaseModel(),
            shapes=found,
            ranks={m: u.up.shape[1] for m, u in updates.items()},
            dtype=dtype,
            layer=dict(updates).__getitem__,
            kept=kept,
            config=config or {},
            provenance=provenance or LEARNED,
            nbytes=sum(t.numel() * t.element_size() for t in tensors),
        )
