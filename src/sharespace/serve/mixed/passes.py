"""Whether the passes of a block went through the hooks that add the updates.

A hook runs where its module is called as a module, and only there. It does not run where a fused
kernel takes the module's weight (the output projection of ``nn.MultiheadAttention``), where
``forward`` is called directly, and in what was captured before the hook came (a CUDA graph, an
exported program): the rows then get the base model's answer, and nothing says so.

A module that did not run may also be right as it is: an expert without tokens, an encoder in a
decoding step, a vision tower without images, a layer after an early exit. So two things are looked
at: adapted weights that something else than their module used, and passes in which no update ran,
though nothing that the hooks can see ran instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sharespace.errors import MismatchError
from sharespace.subspace.naming import unwrapped
from sharespace.tuner.modules import find_module, way_to

_NEAR = 2
"""Levels of modules below the model (below a pipeline's component) that tell of a pass."""


@dataclass(eq=False)
class Seen:
    """What ran in the passes of one block.

    Hooks fill it in, also from compiled code: dynamo repeats what a traced hook changes.
    """

    updated: set[str] = field(default_factory=set)
    """Adapted modules whose update was added, or had nothing to add."""
    passed: bool = False
    """A module close to the model's root ran."""


class WeightWatch(TorchFunctionMode):
    """Notes which weights are used inside the block; compiled code is not looked into."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        weights = ((name, getattr(find_module(model, name), "weight", None)) for name in names)
        self._names = {id(w): name for name, w in weights if isinstance(w, Tensor)}
        self.used: set[str] = set()
        self.is_idle = True
        """Nothing was computed."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if not torch.compiler.is_compiling():
            self._note(func, (*args, *(kwargs or {}).values()), result)
        return result

    def _note(self, func: object, values: Sequence[object], result: object) -> None:
        # Reading an attribute, such as the dtype or the number of elements, computes nothing.
        if getattr(func, "__name__", "") == "__get__" or not isinstance(result, (Tensor, tuple)):
            return
        self.is_idle = False
        # The input embeddings of a model may be tied to an output projection that is adapted.
        if func is nn.functional.embedding:
            return
        for value in values:
            name = self._names.get(id(value))
            if name is not None:
                self.used.add(name)


def watching(watch: WeightWatch | None) -> AbstractContextManager[object]:
    """The watch as a context, or none."""
    return nullcontext() if watch is None else watch


def check_passes(
    tasks: Sequence[str], adapted: frozenset[str], seen: Seen, watch: WeightWatch | None
) -> None:
    """Refuse passes whose answers are the base model's where a task's were asked for.

    Args:
        tasks: of the rows.
        adapted: modules that any of them adapts.
        seen: what ran.
        watch: of the block; None: it was not watched.

    Raises:
        MismatchError: an adapted weight was used past its module; or no update was added, and
            nothing explains why.
    """
    bypassed = sorted((watch.used & adapted) - seen.updated) if watch is not None else []
    if bypassed:
        others = f" (and {len(bypassed) - 1} more)" if len(bypassed) > 1 else ""
        raise MismatchError(
            f"module {bypassed[0]!r}{others}",
            "its weight was used without calling the module (a fused kernel, or a direct call of "
            "forward), so that the rows got the base model's answer there",
            "Turn the fused kernel off, or use Share.merge_into_base for one task at a time",
        )
    if not adapted or seen.updated or seen.passed or watch is None or watch.is_idle:
        return
    raise MismatchError(
        f"tasks {', '.join(repr(t) for t in tasks[:3])}{', ...' if len(tasks) > 3 else ''}",
        f"none of the {len(adapted)} modules that they adapt was called in the block: the model "
        "was captured before the tasks were attached (a CUDA graph, an exported program), or it "
        "did not run in this block",
        "Capture the model inside the block, after MixedTasks(model, share), and call it there",
    )


def refuse_scripted(model: nn.Module, name: str) -> None:
    """Refuse a module inside TorchScript, which runs no hooks of modules in it.

    Raises:
        MismatchError: the module, or one that it is part of, is TorchScript.
    """
    for module in (*(parent for parent, _ in way_to(model, name)), find_module(model, name)):
        if isinstance(module, torch.jit.ScriptModule):
            raise MismatchError(
                f"module {name!r}",
                "is part of TorchScript, which does not run hooks, so that no task would act",
                "Give the model as it was before torch.jit",
            )


def near_root(model: nn.Module) -> Iterator[str]:
    """Names of modules that tell of a pass: children and grandchildren of each whole model.

    Not the models themselves: what replaces the forward of a whole model still runs its hooks.
    """
    levels = _NEAR + isinstance(model, nn.ModuleDict)
    for path, module in model.named_modules():
        name = unwrapped(path)
        depth = name.count(".") + 1 if name else 0
        if levels - _NEAR < depth <= levels and not isinstance(
            module, (nn.ModuleList, nn.ModuleDict)
        ):
            yield name


@dataclass(frozen=True, eq=False)
class Places:
    """Where the adapted modules were found, to notice that one was replaced afterwards."""

    entries: tuple[tuple[dict[str, nn.Module | None], str, nn.Module], ...]
    """Each module on the way to an adapted one: its parent's children, its name there, itself."""

    @classmethod
    def of(cls, model: nn.Module, names: Sequence[str]) -> Places:
        """As they are now."""
        steps = {
            (id(parent), child): (parent._modules, child, parent.get_submodule(child))
            for name in names
            for parent, child in way_to(model, name)
        }
        return cls(tuple(steps.values()))

    def are_as_before(self) -> bool:
        """False where a module was replaced."""
        return all(children.get(name) is module for children, name, module in self.entries)


def forget_compiled() -> None:
    """Compile anew what torch.compile has compiled: dynamo does not look for hooks that came later.

    ``torch._dynamo.config.skip_nnmodule_hook_guards`` is on by default and is read when a graph is
    compiled, so that turning it off now would not help (pytorch/pytorch#117758).
    """
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
