"""Basis methods by name: how the bases of a layer are found from its tasks.

Each file ``NAME_method.py`` of this folder is the method NAME; other packages register theirs with
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

# Without it, the method "share" would be a second module of the name ``share``.
_SUFFIX = "_method"

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
    if name not in _registered and name in shipped_methods():
        import_module(f"{__name__}.{name}{_SUFFIX}")
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
    return tuple(dict.fromkeys((*shipped_methods(), *_registered)))


@cache
def shipped_methods() -> tuple[str, ...]:
    """Names of the methods that come with sharespace."""
    files = (module.name for module in iter_modules(__path__))
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX)))


def _address(method: type) -> str:
    return f"{method.__module__}.{method.__qualname__}"
