"""Optional dependencies, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from sharespace.errors import MissingExtraError


def require(module: str, extra: str) -> Any:
    """The module, or a message that says how to install it.

    Args:
        module: its import name, for example ``"matplotlib.pyplot"``.
        extra: the extra of sharespace that brings it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"module {error.name!r}", "not installed", f"pip install 'sharespace[{extra}]'"
        ) from error
