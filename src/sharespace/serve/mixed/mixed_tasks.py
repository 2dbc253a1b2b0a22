"""One forward pass for rows of many tasks: what serving runs.

PEFT's ``adapter_names`` keeps an adapter per task in every layer and runs them one after the other;
here a row takes its coefficients by number out of one stack, and the bases meet all rows at once.
The model may be a pipeline of diffusers: several models, of which a task may adapt more than one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sharespace.errors import MismatchError, OptionError
from sharespace.formats.lora_config import refuse_unusable
from sharespace.serve.mixed.folded import (
    Folded,
    folded,
    is_convolution,
    is_kept,
    with_own,
    with_updates,
    worth_folding,
)
from sharespace.serve.mixed.passes import (
    Places,
    Seen,
    WeightWatch,
    check_passes,
    forget_compiled,
    near_root,
    refuse_scripted,
    watching,
)
from sharespace.serve.mixed.slots import Slots, heads_of, own_outputs
from sharespace.serve.mixed.stacks import BASE_SLOT, RowLayout, RowTasks, Stack
from sharespace.share import Share
from sharespace.subspace.base_weights import checked_base, misfit_tasks, misfits
from sharespace.subspace.state import ShareModel
from sharespace.tuner.modules import device_of, find_module
from sharespace.tuner.subspace_layer import sides

_DENOISERS = ("unet", "transformer")
"""Component names of the model that pipelines of diffusers run at every step."""


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
        self, model: object, share: Share, *, slots: int = 256, dtype: torch.dtype | None = None
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
        self._holder: int | None = None
        self._block: Block | None = None
        self._hooks = Hooks(self.model)
        self._hooked: Slots | None = None
        self._places = Places(())
        self._watched: set[str] = set()
        self._current = share, self._open(share)
        """What new blocks use; one attribute, so that a block never sees half a version."""

    @property
    def share(self) -> Share:
        """The version that new blocks use."""
        return self._current[0]

    @property
    def slots(self) -> Slots:
        """The tasks at hand, of that version."""
        return self._current[1]

    def replace(self, share: Share) -> None:
        """From the next block on use another version: tasks added, removed or changed.

        A block that runs goes on with the version it began with, and nobody waits for it. What is
        refused leaves the current version in place.

        Args:
            share: the version; its bases are copied to the model's device now.

        Raises:
            MismatchError: the model is not the Share model's base.
        """
        self._current = share, self._open(share)

    def remove(self) -> None:
        """Take the hooks away, once no block runs; the model is the plain base model again.

        Raises:
            OptionError: inside a block of this thread.
        """
        with self._alone():
            self._hooks.clear()
            self._hooked = None

    @contextmanager
    def tasks(
        self, names: Sequence[str | None], *, beams: int = 1, copies: int | None = None
    ) -> Iterator[Share]:
        """Forward passes inside the block run row i with task ``names[i]``.

        Args:
            names: one a row (a pipeline: one a prompt): a task, or a mixture such as
                ``legal:0.7+medical:0.3``; None: the base model without any task.
            beams: rows that generation makes of each, side by side (``num_beams``,
                ``num_return_sequences`` or ``num_images_per_prompt``).
            copies: times that guidance repeats the whole batch, one copy after the other. None:
                twice while a pipeline given to ``MixedTasks`` says that it guides, else once.

        Yields:
            The version that the block runs on, whatever ``replace`` does meanwhile.

        Raises:
            TaskNotFoundError: a task is not in the Share model.
            MismatchError: a task carries something that has no place in the model; or, when the
                block ends, its passes went past the updates: a fused kernel used an adapted weight,
                or the model was captured before the tasks were attached.
            UnsupportedAdapterError: a task's config has a field that changes what its factors do
                (aLoRA), or one that is not known.
            OptionError: more tasks at once than there are slots, or, in a pass, another number of
                rows than names.
        """
        with self._alone():
            share, slots = self._hook_updates()
            numbers = slots.numbers(names)
            layout = RowLayout(
                tuple(numbers), beams, self._copies if copies is None else lambda: copies
            )
            self._hook_heads(slots, set(numbers))
            block = self._block = Block(slots, layout, frozenset(numbers))
            asked = [name for name in dict.fromkeys(names) if name is not None]
            adapted = frozenset().union(*(slots.modules[number] for number in block.used))
            # Looking at every operation takes time: until the updates of a task have run once.
            watch = None
            if adapted and not self._watched.issuperset(asked):
                watch = WeightWatch(self.model, sorted(adapted))
            try:
                with watching(watch):
                    yield share
            finally:
                self._block = None
            check_passes(asked, adapted, block.seen, watch)
            if adapted & block.seen.updated:
                self._watched.update(asked)
            elif not block.seen.passed:
                # Either nothing ran or a graph was replayed: the next block will tell.
                self._watched.difference_update(asked)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._holder == threading.get_ident():
            raise OptionError(
                "MixedTasks", "this thread is inside a block already", "Leave it first"
            )
        with self._lock:
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._holder = None

    def sides_of(self, module: str) -> tuple[int, int] | None:
        """(n, d) of a module of the base model; None: it is not there, or can have no update.

        Args:
            module: path of a module in the base model.
        """
        return module_sides(self.model, module)

    def check_task(self, model: ShareModel, name: str) -> None:
        """Refuse a task that cannot run on the base model, without running it.

        Args:
            model: a Share model that has the task; not necessarily the one that is served.
            name: of the task.

        Raises:
            TaskNotFoundError: the Share model has no such task.
            MismatchError: it adapts a module, or carries a head, that the base model does not have,
                or has in another shape.
            UnsupportedAdapterError: its config has a field that changes what its factors do.
        """
        task = model.task(name)
        alone = model.with_tasks([task])
        for error in misfit_tasks(alone, self.sides_of).values():
            raise error
        refuse_unusable(f"task {name!r}", task.config)
        heads_of(self.model, task, model.layers)

    def _open(self, share: Share) -> Slots:
        self._check_shapes(share)
        if share.model.base_samples:
            modules = {name: find_module(self.model, name) for name in share.model.layers}
            checked_base("the served model", share.model.base_samples, modules)
        find = partial(heads_of, self.model, adapted=share.model.layers)
        return Slots(share.model, self._count, find, self._dtype, self._device_of)

    def _check_shapes(self, share: Share) -> None:
        for name, error in misfits(share.model.shapes, self.sides_of).items():
            # A module inside TorchScript has lost its kind, so its sides are not known.
            with suppress(AttributeError):
                refuse_scripted(self.model, name)
            raise error
        for name in share.model.shapes:
            refuse_scripted(self.model, name)

    def _device_of(self, name: str) -> torch.device:
        """Of one module: a large model may be on several devices."""
        device = device_of(find_module(self.model, name))
        if device is None:
            raise MismatchError(
                f"module {name!r}",
                'its weights are not loaded (they are on the device "meta")',
                "Load them first, or offload them with accelerate's device_map",
            )
        return device

    def _hook_updates(self) -> tuple[Share, Slots]:
        """The current version and its slots, with hooks on the modules as they are in the model."""
        share, slots = self._current
        if slots is not self._hooked or not self._places.are_as_before():
            self._hooks.clear()
            self._hooked = None
            self._check_shapes(share)
            for name in near_root(self.model):
                self._hooks.add("pass", name, self._note_pass)
            for name in slots.stacks:
                # Before other hooks: these see the module's output only with the update.
                self._hooks.add("update", name, self._add_update, first=True)
            self._hooked = slots
            self._places = Places.of(self.model, list(slots.stacks))
            self._watched.clear()
            forget_compiled()
        return share, slots

    def _hook_heads(self, slots: Slots, used: set[int]) -> None:
        """Heads are seen when a task comes to hand: there may be thousands of tasks."""
        for slot in used & slots.heads.keys():
            new = [self._hooks.add("head", name, self._own_head) for name in slots.heads[slot]]
            if any(new):
                forget_compiled()

    def _add_update(
        self, name: str, module: nn.Module, args: tuple[Tensor, ...], result: Tensor
    ) -> Tensor | None:
        block = self._block
        if block is None or block.used <= {BASE_SLOT}:
            return None
        block.seen.updated.add(name)
        return block.update(name, module, args[0], result)

    def _note_pass(self, *_: object) -> None:
        if self._block is not None:
            self._block.seen.passed = True

    def _own_head(
        self, name: str, module: nn.Module, args: tuple[Tensor, ...], result: Tensor
    ) -> Tensor | None:
        block = self._block
        own = {} if block is None else block.heads(name)
        if block is None or not own:
            return None
        self._block = None  # A head that is called with a task's own parameters has this hook, too.
        try:
            return own_outputs(module, own, block.of(args[0]).slots, args[0], result)
        finally:
            self._block = block


@dataclass(frozen=True, eq=False)
class Block:
    """What the passes inside one ``with mixed.tasks(...)`` have in common."""

    slots: Slots
    """Of the version that was current when the block began."""
    layout: RowLayout
    used: frozenset[int]
    """Slots of all rows."""
    known: dict[tuple[int, torch.device], RowTasks] = field(default_factory=dict)
    """(rows of a pass, device) -> their tasks."""
    seen: Seen = field(default_factory=Seen)
    """What ran so far."""

    def heads(self, module: str) -> dict[int, Mapping[str, Tensor]]:
        """Slot -> own parameters of that module, of the tasks of these rows."""
        known = {s: self.slots.heads.get(s, {}) for s in self.used}
        return {s: heads[module] for s, heads in known.items() if module in heads}

    def of(self, x: Tensor) -> RowTasks:
        """The tasks for a tensor whose first axis is rows, repeated or not."""
        key = len(x), x.device
        if key not in self.known:
            self.known[key] = RowTasks.of(self.layout.of(len(x)), x.device)
        return self.known[key]

    def update(self, name: str, module: nn.Module, x: Tensor, result: Tensor) -> Tensor | None:
        """The module's output with the updates; None: no row has one here."""
        stack = self.slots.stacks[name]
        per_task = {s: pair for s, pair in stack.per_task.items() if s in self.used}
        if stack.is_empty and not per_task:
            return None
        rows = self.of(x)
        narrow = self._folded(name, module, stack, rows, result)
        if narrow is not None:
            return with_own(module, narrow, x, rows, result)
        wide = None if stack.is_empty else stack
        return with_updates(module, wide, x, rows.slots, per_task, result)

    def _folded(
        self, name: str, module: nn.Module, stack: Stack, rows: RowTasks, result: Tensor
    ) -> Folded | None:
        """The tasks' own factors where they are faster than the bases; else None.

        They are kept from the pass before where that was of the same few tasks, as in generation.
        """
        known = self.slots.folded.get(name)
        if known is not None and known[0] == self.used:
            return known[1]
        width, tasks, count = stack.width(rows.numbers), len(rows.numbers), len(rows.slots)
        sizes = count, result.numel() // (count * len(stack.left_basis))
        if not worth_folding(stack, width, tasks, sizes, not is_convolution(module)):
            return None
        made = folded(stack, rows, width)
        if is_kept(stack, width, tasks):
            self.slots.folded[name] = self.used, made
        return made


class Hooks:
    """Forward hooks on modules by name, each kind at most once a module, taken away together."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._handles: dict[tuple[str, str], RemovableHandle] = {}

    def add(
        self, kind: str, name: str, call: Callable[..., Tensor | None], first: bool = False
    ) -> bool:
        """Call ``call(name, module, args, result)`` after the module, unless that kind is there.

        Args:
            kind: what the hook does.
            name: of the module.
            call: returns the output that takes the place of ``result``, or None.
            first: before hooks that the module has already.

        Returns:
            True where it was not there.

        Raises:
            MismatchError: there is no such module.
        """
        if (kind, name) in self._handles:
            return False
        module = find_module(self.model, name)
        handle = module.register_forward_hook(partial(call, name), prepend=first)
        self._handles[kind, name] = handle
        return True

    def clear(self) -> None:
        """Take all away."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()


def module_sides(model: nn.Module, name: str) -> tuple[int, int] | None:
    """(n, d) of a module; None: there is none of that name, or it can have no update."""
    try:
        return sides(find_module(model, name))
    except MismatchError:
        return None


def as_module(model: object, adapted: Iterable[str]) -> nn.Module:
    """The module in which the adapted modules are found by their names.

    Args:
        model: a model, or a pipeline of diffusers.
        adapted: names; a pipeline's begin with the component ("unet.", "text_encoder."), or, if
            none does, are those of its denoiser.

    Raises:
        MismatchError: neither a model nor a pipeline.
    """
    if isinstance(model, nn.Module):
        return model
    components = getattr(model, "components", None)
    if not isinstance(components, dict):
        raise MismatchError(
            f"{type(model).__name__}",
            "neither a torch module nor a pipeline of diffusers",
            "Give the base model itself",
        )
    modules = {name: c for name, c in components.items() if isinstance(c, nn.Module)}
    if not any(name.partition(".")[0] in modules for name in adapted):
        for denoiser in _DENOISERS:
            if denoiser in modules:
                return modules[denoiser]
    return nn.ModuleDict(modules)


def guided_copies(model: object) -> int:
    """How often guidance repeats the batch: 2 while a pipeline says that it guides, else 1.

    diffusers runs the prompt and the empty prompt as one batch (classifier-free guidance).
    """
    guides = not isinstance(model, nn.Module) and getattr(
        model, "do_classifier_free_guidance", False
    )
    return 2 if guides else 1
