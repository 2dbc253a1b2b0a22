"""Which tasks of a Share model are at hand, in numbered slots; others are read when asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from sharespace.errors import OptionError
from sharespace.formats.components import refuse_unusable
from sharespace.serve.mixed.folded import Folded
from sharespace.serve.mixed.heads import Heads
from sharespace.serve.mixed.stacks import BASE_SLOT, Stack
from sharespace.subspace.state import ShareModel, Task


class Slots:
    """One version of a Share model: bases on the device, and as many tasks as there are slots.

    A task that is not at hand takes the place of the one that was not used for longest; its
    coefficients are read from the store then, so that memory does not grow with the tasks.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: ShareModel,
        count: int,
        heads: Callable[[Task], Heads],
        dtype: torch.dtype,
        device: Callable[[str], torch.device],
    ) -> None:
        """No task at hand yet.

        Args:
            model: its tasks and bases.
            count: tasks at hand at the same time.
            heads: what a task carries, where it belongs in the base model.
            dtype: of bases and coefficients.
            device: of a module; a large model's may be on several.

        Raises:
            OptionError: ``count`` is not positive.
        """
        if count < 1:
            raise OptionError(f"slots={count}", "must be at least 1", "Give more")
        self.model = model
        self.count = count
        self.stacks = {
            name: Stack.empty(layer, count + 1, dtype, device(name))
            for name, layer in model.layers.items()
        }
        self.heads: dict[int, Heads] = {}
        """Slot -> what the task carries besides its coefficients."""
        self.modules: dict[int, frozenset[str]] = {BASE_SLOT: frozenset()}
        """Slot -> modules that the task adapts."""
        self.folded: dict[str, tuple[frozenset[int], Folded]] = {}
        """Module -> the slots of its last pass with few tasks, and their own factors; of many tasks
        they are made for each pass, so that memory does not grow."""
        self._heads_of = heads
        self._free = list(range(count, BASE_SLOT, -1))
        self._used: OrderedDict[str, int] = OrderedDict()

    @property
    def at_hand(self) -> tuple[str, ...]:
        """Tasks in slots, the one that was not used for longest first."""
        return tuple(self._used)

    @property
    def nbytes(self) -> int:
        """Of all slots: what tasks take beside the bases."""
        owners = [tensors for heads in self.heads.values() for tensors in heads.values()]
        heads = sum(t.nbytes for tensors in owners for t in tensors.values())
        return heads + sum(stack.nbytes for stack in self.stacks.values())

    def numbers(self, names: Sequence[str | None]) -> list[int]:
        """The slot of each row's task; None: the base model.

        Raises:
            TaskNotFoundError: a task is not in the Share model; nothing is read then.
            MismatchError: a task carries something that has no place in the base model.
            UnsupportedAdapterError: a task's config has a field that changes what factors do.
            OptionError: more tasks at once than there are slots.
        """
        needed = [name for name in dict.fromkeys(names) if name is not None]
        for name in needed:
            if name not in self.model.tasks:
                self.model.task(name)  # Raises TaskNotFoundError.
        if len(needed) > self.count:
            raise OptionError(
                f"{len(needed)} tasks in one batch",
                f"there are {self.count} slots",
                "Make smaller batches, or MixedTasks with more slots",
            )
        for name in needed:
            if name in self._used:
                self._used.move_to_end(name)
        for name in needed:
            if name not in self._used:
                self._bring(name, needed)
        return [BASE_SLOT if name is None else self._used[name] for name in names]

    # Tensors outlive the pass, which may be in inference mode, where the next one is not.
    @torch.inference_mode(False)
    def _bring(self, name: str, needed: Sequence[str]) -> None:
        task = _read(self.model, name)
        refuse_unusable(f"task {name!r}", task.config)
        slot = self._free.pop() if self._free else self._evict(needed)
        # They may be of the slot that is filled now.
        self.folded.clear()
        try:
            self.heads[slot] = self._heads_of(task)
            self.modules[slot] = frozenset(m for m in self.stacks if m in task.coefficients)
            for module, stack in self.stacks.items():
                stack.put(slot, task.coefficients.get(module))
        except BaseException:
            self.heads.pop(slot, None)
            self._free.append(slot)
            raise
        self._used[name] = slot

    def _evict(self, needed: Sequence[str]) -> int:
        oldest = next(name for name in self._used if name not in needed)
        slot = self._used.pop(oldest)
        self.heads.pop(slot, None)
        return slot


def _read(model: ShareModel, name: str) -> Task:
    """The task; a stored one is read without being remembered, as thousands may pass by."""
    peek = getattr(model.tasks, "peek", None)
    return model.task(name) if peek is None else peek(name)
