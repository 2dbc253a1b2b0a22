"""One forward pass for rows of many tasks: what serving runs.

PEFT's ``adapter_names`` keeps an adapter per task in every layer and runs them one after the other;
here a row takes its coefficients by number out of one stack, and the bases meet all rows at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sharespace.errors import MismatchError
from sharespace.nn.batch_heads import heads_of, own_outputs
from sharespace.nn.block import Block
from sharespace.nn.layer import sides
from sharespace.nn.layout import Layout
from sharespace.nn.pipelines import as_module, guided_copies
from sharespace.nn.slots import Slots
from sharespace.nn.stacks import BASE_SLOT
from sharespace.share import Share


class MixedTasks:
    """A base model that runs every row of a batch with its own task of a Share model.

    ::

        mixed = MixedTasks(model, share)
        with mixed.tasks(["sst2", "rte", None]):          # None: the base model
            logits = model(**batch).logits

    The model's weights are not touched: hooks add the updates, and ``remove`` takes them away. A
    task's head works on its own rows; where heads have different numbers of labels, missing logits
    are -inf. Inference only: gradients do not reach the coefficients. One block at a time: another
    thread waits at ``tasks`` until the block before has ended.
    """

    def __init__(
        self, model: Any, share: Share, *, slots: int = 256, dtype: torch.dtype | None = None
    ) -> None:
        """Attach to a model.

        Args:
            model: the base model without PEFT, in evaluation mode; or a pipeline of diffusers,
                whose text encoders may be adapted, too.
            share: its tasks; coefficients are read when a task is first asked for.
            slots: tasks at hand at the same time, and so the most in one batch.
            dtype: of bases and coefficients; None: float32. The model's own dtype is fastest.

        Raises:
            MismatchError: the model is not the Share model's base.
            OptionError: ``slots`` is not positive.
        """
        self.model = as_module(model, share.model.layers)
        """The base model; of a pipeline, its components by name, or the denoiser alone."""
        self._copies = partial(guided_copies, model)
        self._dtype = dtype or torch.float32
        self._count = slots
        self._lock = threading.Lock()
        self._rows: Block | None = None
        self._handles: dict[tuple[str, str], Any] = {}
        self._share, self._slots = share, self._open(share)
        self._attach()

    @property
    def share(self) -> Share:
        """The version that new blocks use."""
        return self._share

    @property
    def slots(self) -> Slots:
        """The tasks at hand, of that version."""
        return self._slots

    def replace(self, share: Share) -> None:
        """From the next block on use another version: tasks added, removed or changed.

        A block that runs goes on with the version it began with. What is refused leaves the
        current version in place.

        Raises:
            MismatchError: the model is not the Share model's base.
        """
        opened = self._open(share)
        with self._lock:
            self._share, self._slots = share, opened
            self._attach()

    def remove(self) -> None:
        """Take the hooks away; the model is the plain base model again."""
        with self._lock:
            self._detach()

    @contextmanager
    def tasks(
        self, names: Sequence[str | None], *, beams: int = 1, copies: int | None = None
    ) -> Iterator[None]:
        """Forward passes inside the block run row i with task ``names[i]``.

        Args:
            names: one a row (a pipeline: one a prompt); None: the base model without any task.
            beams: rows that generation makes of each, side by side (``num_beams``,
                ``num_return_sequences`` or ``num_images_per_prompt``).
            copies: times that guidance repeats the whole batch, one copy after the other. None:
                twice while a pipeline given to ``MixedTasks`` says that it guides, else once.

        Raises:
            TaskNotFoundError: a task is not in the Share model.
            MismatchError: a task carries something that has no place in the model.
            OptionError: more tasks at once than there are slots, or, in a pass, another number of
                rows than names.
        """
        with self._lock:
            numbers = self._slots.numbers(names)
            layout = Layout(
                tuple(numbers), beams, self._copies if copies is None else lambda: copies
            )
            self._hook_heads(set(numbers))
            self._rows = Block(self._slots, layout, frozenset(numbers))
            try:
                yield
            finally:
                self._rows = None

    def _open(self, share: Share) -> Slots:
        for name, shape in share.model.shapes.items():
            module = _module(self.model, name)
            wanted = (shape.out_features, shape.in_features)
            if sides(module) != wanted:
                raise MismatchError(
                    f"module {name!r}",
                    f"is {sides(module)} here, but {wanted} in the Share model",
                    "Use the base model that the Share model was made for",
                )
        find = partial(heads_of, self.model, adapted=share.model.layers)
        return Slots(share.model, self._count, find, self._dtype, self._device_of)

    def _device_of(self, name: str) -> torch.device:
        """Of one module: a large model may be on several devices."""
        return next(_module(self.model, name).parameters()).device

    def _attach(self) -> None:
        self._detach()
        for name in self._share.model.layers:
            self._hook("update", name, self._add_update)

    def _hook_heads(self, slots: set[int]) -> None:
        """Heads are seen when a task comes to hand: there may be thousands of tasks."""
        for slot in slots & self._slots.heads.keys():
            for name in self._slots.heads[slot]:
                self._hook("head", name, self._own_head)

    def _hook(self, kind: str, name: str, call: Callable[..., Any]) -> None:
        if (kind, name) not in self._handles:
            module = _module(self.model, name)
            handle = module.register_forward_hook(partial(call, name))
            self._handles[kind, name] = handle

    def _detach(self) -> None:
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def _add_update(self, name: str, module: Any, args: tuple[Any, ...], result: Tensor) -> Any:
        rows = self._rows
        if rows is None or rows.chosen <= {BASE_SLOT}:
            return None
        return rows.update(name, module, args[0], result)

    def _own_head(self, name: str, module: Any, args: tuple[Any, ...], result: Tensor) -> Any:
        rows = self._rows
        own = {} if rows is None else rows.heads(name)
        if rows is None or not own:
            return None
        self._rows = None  # A head that is called with a task's own parameters has this hook, too.
        try:
            return own_outputs(module, own, rows.of(args[0]), args[0], result)
        finally:
            self._rows = rows


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise MismatchError(
            f"module {name!r}", "not in this model", "Use the base model the adapters belong to"
        ) from error
