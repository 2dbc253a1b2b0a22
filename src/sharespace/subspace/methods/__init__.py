"""Basis methods by name: how the bases of a layer are found from its tasks.

Each file of this folder is one method under the file's name; other packages register theirs with
``register``. Only names are known until a method is asked for, so that this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, TypeVar

from sharespace.errors import OptionError

if TYPE_CHECKING:
    from sharespace.subspace.basis_method import BasisMethod

    MethodClass = TypeVar("MethodClass", bound=type[BasisMethod])

DEFAULT_METHOD = "joint"
"""What is used where no method is named."""

_registered: dict[str, BasisMethod] = {}


def register(name: str, *, paper: str) -> Callable[[MethodClass], MethodClass]:
    """Make a class known as a basis method: a decorator.

    Args:
        name: what users call it, and what stores say; it must not change afterwards.
        paper: address of the paper that describes it.

    Raises:
        OptionError: another class has that name.
    """

    def add(method: MethodClass) -> MethodClass:
        known = _registered.get(name)
        # The same class again is no mistake: notebooks run cells twice, and modules are reloaded.
        if known is not None and _address(type(known)) != _address(method):
            raise OptionError(
                f"basis method {name!r}", f"{_address(type(known))} has that name", "Choose another"
            )
        method.name, method.paper = name, paper
        _registered[name] = method()
        return method

    return add


def basis_method(name: str) -> BasisMethod:
    """The method of that name.

    Raises:
        OptionError: there is none.
    """
    if name not in _registered and name in own_names():
        import_module(f"{__name__}.{name}")
    if name not in _registered:
        known = ", ".join(map(repr, method_names()))
        raise OptionError(
            f"method={name!r}",
            "is not known",
            f"Choose one of {known}, or import the package that registers it",
        )
    return _registered[name]


def method_names() -> tuple[str, ...]:
    """Names of all methods, those of this folder first."""
    return tuple(dict.fromkeys((*own_names(), *_registered)))


@cache
def own_names() -> tuple[str, ...]:
    """Names of the methods that come with sharespace."""
    return tuple(sorted(module.name for module in iter_modules(__path__)))


def _address(method: type) -> str:
    return f"{method.__module__}.{method.__qualname__}"
