"""The passes that run with one choice of tasks: which slots, and what is computed once for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sharespace.nn.chosen import Chosen
from sharespace.nn.folded import Folded, folded, is_kept, worth_folding
from sharespace.nn.layout import Layout
from sharespace.nn.rows import is_convolution, with_own, with_updates
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
    known: dict[tuple[int, torch.device], Chosen] = field(default_factory=dict)
    """(rows of a pass, device) -> their tasks."""

    def heads(self, module: str) -> dict[int, Mapping[str, Tensor]]:
        """Slot -> own parameters of that module, of the tasks of these rows."""
        known = {s: self.slots.heads.get(s, {}) for s in self.chosen}
        return {s: heads[module] for s, heads in known.items() if module in heads}

    def of(self, x: Tensor) -> Chosen:
        """The tasks for a tensor whose first axis is rows, repeated or not."""
        key = len(x), x.device
        if key not in self.known:
            self.known[key] = Chosen.of(self.layout.of(len(x)), x.device)
        return self.known[key]

    def update(self, name: str, module: nn.Module, x: Tensor, result: Tensor) -> Tensor | None:
        """The module's output with the updates; None: no row has one here."""
        stack = self.slots.stacks[name]
        private = {s: pair for s, pair in stack.private.items() if s in self.chosen}
        if stack.is_empty and not private:
            return None
        rows = self.of(x)
        narrow = self._folded(name, module, stack, rows, result)
        if narrow is not None:
            return with_own(module, narrow, x, rows, result)
        wide = None if stack.is_empty else stack
        return with_updates(module, wide, x, rows.slots, private, result)

    def _folded(
        self, name: str, module: nn.Module, stack: Stack, rows: Chosen, result: Tensor
    ) -> Folded | None:
        """Found done where the pass before was of the same few tasks, as in generation."""
        known = self.slots.folded.get(name)
        if known is not None and known[0] == self.chosen:
            return known[1]
        width, tasks, count = stack.width(rows.numbers), len(rows.numbers), len(rows.slots)
        sizes = count, result.numel() // (count * len(stack.left_basis))
        if not worth_folding(stack, width, tasks, sizes, not is_convolution(module)):
            return None
        made = folded(stack, rows, width)
        if is_kept(stack, width, tasks):
            self.slots.folded[name] = self.chosen, made
        return made
