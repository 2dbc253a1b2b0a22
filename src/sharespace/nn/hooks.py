"""Forward hooks on modules by name, each at most once, and all taken away together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from sharespace.errors import MismatchError


class Hooks:
    """Hooks on the modules of one model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._handles: dict[tuple[str, str], Any] = {}

    def add(self, kind: str, name: str, call: Callable[..., Any], first: bool = False) -> None:
        """Call ``call(name, module, args, result)`` after the module, unless that kind is there.

        ``first``: before hooks that the module has already.

        Raises:
            MismatchError: there is no such module.
        """
        if (kind, name) not in self._handles:
            module = module_of(self.model, name)
            handle = module.register_forward_hook(partial(call, name), prepend=first)
            self._handles[kind, name] = handle

    def clear(self) -> None:
        """Take all away."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()


def module_of(model: nn.Module, name: str) -> nn.Module:
    """The module of that name.

    Raises:
        MismatchError: there is none.
    """
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise MismatchError(
            f"module {name!r}", "not in this model", "Use the base model the adapters belong to"
        ) from error
