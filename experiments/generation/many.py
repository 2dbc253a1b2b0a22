"""Many LoRA adapters of one model in one forward pass: stacked factors, one batched product a side.

A batch has the same number of rows for every adapter, those of the first adapter first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sharespace.subspace.adapter import LayerUpdate

Updates = Mapping[str, LayerUpdate]
"""Module -> update."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Factors of several adapters, by module; scaling is in ``up``."""

    names: tuple[str, ...]
    up: Mapping[str, Tensor]
    """Module -> adapters x n x r."""
    down: Mapping[str, Tensor]
    """Module -> adapters x r x d."""

    @classmethod
    def of(cls, adapters: Mapping[str, Updates]) -> Stack:
        """Smaller ranks are filled up with zeros.

        Args:
            adapters: name -> updates, at least one; all of the same modules.
        """
        modules = list(next(iter(adapters.values())))
        up, down = {}, {}
        for module in modules:
            factors = [updates[module] for updates in adapters.values()]
            rank = max(u.up.shape[1] for u in factors)
            up[module] = torch.stack([_filled(u.scaling * u.up, rank) for u in factors])
            down[module] = torch.stack([_filled(u.down.mT, rank).mT for u in factors])
        return cls(tuple(adapters), up, down)

    def select(self, names: Sequence[str]) -> Stack:
        """Some of the adapters, in that order."""
        rows = [self.names.index(name) for name in names]
        up = {module: factor[rows] for module, factor in self.up.items()}
        return Stack(tuple(names), up, {m: factor[rows] for m, factor in self.down.items()})

    def updates(self, name: str) -> dict[str, LayerUpdate]:
        """One adapter's updates, as copies."""
        at = self.names.index(name)
        return {
            module: LayerUpdate(
                self.up[module][at].detach().clone(), self.down[module][at].detach().clone()
            )
            for module in self.up
        }


def _filled(columns: Tensor, rank: int) -> Tensor:
    return nn.functional.pad(columns, (0, rank - columns.shape[1]))


class ManyLora(nn.Module):
    """A linear layer with several updates, each for its own rows."""

    def __init__(self, base: nn.Module, up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.base = base
        self.up, self.down = up, down

    def forward(self, x: Tensor) -> Tensor:
        """x: (adapters * rows) x positions x d."""
        plain: Tensor = self.base(x)
        mine = x.reshape(len(self.up), -1, x.shape[-1])
        hidden = torch.bmm(mine, self.down.to(x.dtype).mT)
        return plain + torch.bmm(hidden, self.up.to(x.dtype).mT).reshape(plain.shape)


@contextmanager
def adapted(model: Any, stack: Stack | None) -> Iterator[Any]:
    """The model with the adapters for the time of the block.

    Args:
        model: its modules are replaced, and put back afterwards.
        stack: None: the model as it is.
    """
    modules = {name: model.get_submodule(name) for name in (stack.up if stack else ())}
    try:
        if stack is not None:
            for name, module in modules.items():
                put = ManyLora(module, stack.up[name], stack.down[name])
                model.set_submodule(name, put)
        yield model
    finally:
        for name, module in modules.items():
            model.set_submodule(name, module)
