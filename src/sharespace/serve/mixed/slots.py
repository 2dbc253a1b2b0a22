"""Which tasks of a Share model are at hand, in numbered slots; others are read when asked for.

Heads of many tasks stand in one batch: each row goes through its own task's copy of a module.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sharespace.errors import MismatchError, OptionError
from sharespace.formats.engines import requested_task, requested_weights
from sharespace.formats.lora_config import refuse_unusable
from sharespace.serve.mixed.folded import Folded
from sharespace.serve.mixed.stacks import BASE_SLOT, Stack
from sharespace.subspace.state import ShareModel, Task
from sharespace.tuner.modules import bare_names, head_tensors

Heads: TypeAlias = Mapping[str, Mapping[str, Tensor]]
"""Module -> its own parameters, by their name in the module."""


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
            requested_weights(self.model, name)
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
        task = requested_task(self.model, name)
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


def heads_of(model: nn.Module, task: Task, adapted: Mapping[str, object]) -> Heads:
    """What a task carries besides its coefficients, where it belongs in the base model.

    Args:
        model: the base model.
        task: of the Share model.
        adapted: the Share model's modules; of these a task may carry biases only.

    Raises:
        MismatchError: something is no parameter of this model, or not where a head can be.
    """
    heads: dict[str, dict[str, Tensor]] = {}
    modules = bare_names(model)
    for key, tensor in head_tensors(task).items():
        owner, _, own = key.rpartition(".")
        like = modules[owner]._parameters.get(own) if owner in modules else None
        if like is None or (owner in adapted and own != "bias"):
            raise MismatchError(
                f"task {task.name!r}",
                f"carries {key!r}, which no head of this model has",
                "Load the base model with a head of that kind, or export the task and use PEFT",
            )
        if not _fits_place(modules[owner], tensor, like):
            raise MismatchError(
                f"task {task.name!r}",
                f"its {key!r} is {tuple(tensor.shape)}, but {tuple(like.shape)} in this model",
                "Use the base model that the task was trained on",
            )
        heads.setdefault(owner, {})[own] = tensor.to(like.device, like.dtype)
    return heads


def _fits_place(module: nn.Module, tensor: Tensor, like: Tensor) -> bool:
    """Whether a tensor has the shape of a parameter; linear heads may have other labels."""
    if isinstance(module, nn.Linear):
        return tensor.ndim == like.ndim and tensor.shape[1:] == like.shape[1:]
    return tensor.shape == like.shape


def own_outputs(
    module: nn.Module,
    own: Mapping[int, Mapping[str, Tensor]],
    slots: Tensor,
    x: Tensor,
    result: Tensor,
) -> Tensor:
    """The module's output with each row's own parameters.

    Args:
        module: of the base model.
        own: slot -> parameters; slots without any keep the base model's.
        slots: int64 [rows].
        x: the module's input, rows first.
        result: the base model's output.

    Returns:
        As ``result``; where outputs differ in size (numbers of labels), as wide as the widest, and
        -inf beyond a row's own.

    Raises:
        MismatchError: outputs differ in something else than the last axis.
    """
    if all(list(parameters) == ["bias"] for parameters in own.values()):
        return _with_biases(module, own, slots, result)
    if isinstance(module, nn.Linear) and all("weight" in p for p in own.values()):
        return _linear(module, own, slots, x, result.dtype)
    return _by_task(module, own, slots, x, result)


def _with_biases(
    module: nn.Module, own: Mapping[int, Mapping[str, Tensor]], slots: Tensor, result: Tensor
) -> Tensor:
    """Biases differ only: an adapted module keeps its update."""
    base = module.get_parameter("bias")
    moved = torch.zeros(len(slots), *base.shape, dtype=base.dtype, device=base.device)
    for slot, parameters in own.items():
        moved[slots == slot] = parameters["bias"] - base
    convolution = isinstance(module, nn.modules.conv._ConvNd)
    between = result.ndim - 2
    shape = (len(slots), -1, *[1] * between) if convolution else (len(slots), *[1] * between, -1)
    return result + moved.reshape(shape)


def _linear(
    module: nn.Linear,
    own: Mapping[int, Mapping[str, Tensor]],
    slots: Tensor,
    x: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """All rows in one product: weights padded to the most labels, and gathered."""
    known = {s: own.get(s, dict(module.named_parameters())) for s in sorted(set(slots.tolist()))}
    most = max(parameters["weight"].shape[0] for parameters in known.values())
    weight = module.weight.new_zeros(len(known), most, module.in_features)
    bias = module.weight.new_full((len(known), most), -torch.inf)
    for i, parameters in enumerate(known.values()):
        labels = parameters["weight"].shape[0]
        weight[i, :labels] = parameters["weight"]
        bias[i, :labels] = parameters.get("bias", 0)
    place = torch.searchsorted(torch.tensor(list(known), device=slots.device), slots)
    flat = x.reshape(len(x), -1, x.shape[-1]).to(weight.dtype)
    outputs = torch.baddbmm(bias[place][:, None], flat, weight[place].mT)
    return outputs.reshape(*x.shape[:-1], most).to(dtype)


def _by_task(
    module: nn.Module,
    own: Mapping[int, Mapping[str, Tensor]],
    slots: Tensor,
    x: Tensor,
    result: Tensor,
) -> Tensor:
    """Any other module: the rows of one task after those of another."""
    rows, outputs = [], []
    for slot in sorted(set(slots.tolist())):
        own_rows = (slots == slot).nonzero().flatten()
        parameters = own.get(slot)
        out = result[own_rows]
        if parameters is not None:
            out = functional_call(module, dict(parameters), (x[own_rows],))
        rows.append(own_rows)
        outputs.append(out)
    return torch.cat(_padded(outputs))[torch.cat(rows).argsort()]


def _padded(outputs: list[Tensor]) -> list[Tensor]:
    if len({tuple(o.shape[1:-1]) for o in outputs}) > 1:
        raise MismatchError(
            "tasks of one batch",
            f"their heads give {sorted({tuple(o.shape[1:]) for o in outputs})}",
            "Give each batch only tasks whose heads differ in the number of labels at most",
        )
    most = max(o.shape[-1] for o in outputs)
    pad = nn.functional.pad
    return [pad(o, (0, most - o.shape[-1]), value=-torch.inf) for o in outputs]
