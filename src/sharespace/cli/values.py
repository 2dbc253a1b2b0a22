"""Values as people type them: adapters with globs and names, sizes, dtypes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sharespace.errors import OptionError, TaskExistsError

if TYPE_CHECKING:
    import torch

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]i?)?b?\s*", re.IGNORECASE)


def adapter_paths(arguments: Iterable[str]) -> dict[str, str]:
    """Task name -> path or Hub id, from arguments ``PATH``, ``GLOB`` or ``NAME=PATH``.

    Raises:
        OptionError: a glob matches nothing.
        TaskExistsError: two of them have the same name.
    """
    from sharespace.formats import default_name

    found: dict[str, str] = {}
    for argument in arguments:
        name, path = _split_name(argument)
        for match in _expanded(path):
            task = name if name is not None else default_name(match)
            if task in found:
                raise TaskExistsError(
                    f"task {task!r}",
                    f"two adapters have that name: {found[task]} and {match}",
                    "Name one of them yourself: NAME=PATH",
                )
            found[task] = match
    return found


def _split_name(argument: str) -> tuple[str | None, str]:
    """``NAME=PATH``; what exists as a path as it stands is a path."""
    name, equals, path = argument.partition("=")
    if not equals or not name or Path(argument).exists():
        return None, argument
    return name, path


def _expanded(path: str) -> list[str]:
    """A shell expands globs itself; this is for those in quotes and for scripts."""
    if not any(c in path for c in "*?[") or Path(path).exists():
        return [path]
    pattern = Path(path).expanduser()
    matches = sorted(
        str(p) for p in Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
    )
    if not matches:
        raise OptionError(f"adapters {path!r}", "nothing matches", "Check the path")
    return matches


def optional_size(text: str | None) -> int | None:
    """``size_in_bytes`` of an option that may have been left out."""
    return None if text is None else size_in_bytes(text)


def size_in_bytes(text: str) -> int:
    """``500000``, ``500k``, ``1.5MB`` (powers of ten) or ``2MiB`` (powers of two).

    Raises:
        OptionError: it is none of these.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise OptionError(f"size {text!r}", "not a number of bytes", "For example 500k, 2MB, 1GiB")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


def dtype_named(name: str | None) -> torch.dtype | None:
    """The dtype of that name; None stays None.

    Raises:
        OptionError: unknown name.
    """
    import torch

    known = {"float32", "float16", "bfloat16", "float64"}
    if name is None:
        return None
    if name not in known:
        raise OptionError(f"dtype {name!r}", "unknown", f"Known: {', '.join(sorted(known))}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
