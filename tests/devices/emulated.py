"""A second device where there is none: real numbers on the CPU that refuse to meet other devices.

Inside ``emulated()`` the device ``OTHER`` can be computed on. Its tensors are wrappers round CPU
tensors, and an operation that mixes devices raises, as it would on a GPU; so a ``.to(device)`` that
is missing is found on a machine without one. Speed and rounding of a GPU are not emulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)


class _Backend(_DummyBackendModule):
    """Without random numbers of its own: ``fork_rng`` would ask it for their state."""

    def device_count(self) -> int:
        return 0


_setup_privateuseone_for_python_backend("emulated", _Backend())
OTHER = torch.device("emulated", 0)


class _There(Tensor):
    """A tensor of the emulated device."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Any:
        made = Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(),
            dtype=here.dtype, layout=here.layout, device=OTHER, requires_grad=False,
        )  # fmt: skip
        made.here = here
        return made

    def __repr__(self, *_: Any, **__: Any) -> str:  # type: ignore[override]
        return f"_There({self.here!r})"

    def tolist(self) -> Any:
        """torch refuses it for subclasses; on a GPU it copies."""
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees operations that make tensors from nothing, too."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    there = any(isinstance(t, _There) for t in tensors)
    wanted = kwargs.get("device")
    moves = "_to_copy" in str(func) or "copy_" in str(func)
    if there and not moves:
        _refuse_mixed(func, tensors)
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        there = torch.device(wanted).type == OTHER.type
    elif "copy_" in str(func) and "_to_copy" not in str(func):
        there = isinstance(args[0], _There)
    inner, named = tree_map_only(_There, lambda t: t.here, (args, kwargs))
    result = func(*inner, **named)
    if not there:
        return result
    mine = {id(t.here): t for t in tensors if isinstance(t, _There)}
    # An operation in place gives back the very tensor that it changed.
    return tree_map_only(Tensor, lambda t: mine[id(t)] if id(t) in mine else _There(t), result)


def _refuse_mixed(func: Any, tensors: list[Tensor]) -> None:
    """As torch does: numbers without a dimension may come from the CPU."""
    strangers = [t for t in tensors if not isinstance(t, _There) and t.dim() > 0]
    if strangers:
        raise RuntimeError(f"{func}: tensors on {OTHER} and on the CPU")


@contextmanager
def emulated() -> Iterator[torch.device]:
    """The device, for as long as the block lasts."""
    before = torch._C._only_lift_cpu_tensors()
    # Otherwise ``torch.tensor(..., device=OTHER)`` asks for real memory there.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Mode():  # type: ignore[no-untyped-call]
            yield OTHER
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
