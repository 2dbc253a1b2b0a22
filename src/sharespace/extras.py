"""Optional dependencies: which are installed, and an import that says how to install them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from sharespace.errors import MissingExtraError

_MODULES = {"train": ("peft", "transformers")}
"""Extra -> modules without which nothing of it works."""


def is_installed(extra: str) -> bool:
    """True where the modules of an extra are installed; nothing is imported to find out."""
    return all(find_spec(module) is not None for module in _MODULES[extra])


def missing_extra(what: str, extra: str) -> MissingExtraError:
    """The error of a name whose extra is not installed.

    Args:
        what: the name, for example ``"sharespace.ShareConfig"``.
        extra: a key of the modules above.
    """
    missing = [module for module in _MODULES[extra] if find_spec(module) is None]
    return MissingExtraError(what, f"{' and '.join(missing)} not installed", _remedy(extra))


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an extra.

    Args:
        module: its import name, for example ``"matplotlib.pyplot"``.
        extra: the extra of sharespace that brings it.

    Raises:
        MissingExtraError: it is not installed; the error says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise missing_module(error, extra) from error


def missing_module(error: ModuleNotFoundError, extra: str) -> MissingExtraError:
    """What a failed import says to somebody who has not installed that extra."""
    return MissingExtraError(f"module {error.name!r}", "not installed", _remedy(extra))


def _remedy(extra: str) -> str:
    return f"pip install 'sharespace[{extra}]'"
