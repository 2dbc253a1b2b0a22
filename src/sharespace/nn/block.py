"""The passes that run with one choice of tasks: which slots, and what is computed once for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sharespace.nn.folded import Folded, folded
from sharespace.nn.layout import Layout
from sharespace.nn.rows import with_updates
from sharespace.nn.slots import Slots
from sharespace.nn.stacks import Stack


@dataclass(frozen=True, eq=False)
class Block:
    """What the passes inside one ``with mixed.tasks(...)`` have in common."""

    slots: Slots
    """Of the version that was current when the block began."""
    layout: Layout
    chosen: frozenset[int]
    """Slots of all rows."""
    index: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)
    """(rows of a pass, device) -> their slots, int64 [rows]."""

    def heads(self, module: str) -> dict[int, Mapping[str, Tensor]]:
        """Slot -> own parameters of that module, of the tasks of these rows."""
        known = {s: self.slots.heads.get(s, {}) for s in self.chosen}
        return {s: heads[module] for s, heads in known.items() if module in heads}

    def of(self, x: Tensor) -> Tensor:
        """Slots for a tensor whose first axis is rows, repeated or not."""
        key = len(x), x.device
        if key not in self.index:
            self.index[key] = torch.tensor(self.layout.of(len(x)), device=x.device)
        return self.index[key]

    def update(self, name: str, module: nn.Module, x: Tensor, result: Tensor) -> Tensor | None:
        """The module's output with the updates; None: no row has one here."""
        stack = self.slots.stacks[name]
        narrow = self._folded(name, stack, result)
        if narrow is not None:
            return with_updates(module, narrow, x, self.of(x), {}, result)
        private = {s: stack.private[s] for s in self.chosen & stack.private.keys()}
        if stack.is_empty and not private:
            return None
        wide = None if stack.is_empty else stack
        return with_updates(module, wide, x, self.of(x), private, result)

    def _folded(self, name: str, stack: Stack, result: Tensor) -> Folded | None:
        """Found done where the pass before was of the same tasks, as in generation."""
        known = self.slots.folded.get(name)
        if known is not None and known[0] == self.chosen:
            return known[1]
        made = folded(stack, self.chosen, result.numel() // len(stack.left_basis))
        if made is not None:
            self.slots.folded[name] = self.chosen, made
        return made
