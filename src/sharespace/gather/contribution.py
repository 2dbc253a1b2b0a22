"""What a worker hands in: one task, in the bases of a version or as plain LoRA factors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from torch import Tensor

from sharespace.errors import ContributionError
from sharespace.shapes import ModuleShape
from sharespace.subspace.adapter import LEARNED, BaseModel, Provenance

NAME = re.compile(r"contribution-(?P<sha256>[0-9a-f]{64})\.safetensors", re.ASCII)
"""File name of a contribution; the hash is that of its bytes, and its id."""

MAX_NAME = 200
"""Characters of a task's name."""


@dataclass(frozen=True)
class Basis:
    """Which bases coefficients belong to."""

    id: str
    """``basis_id`` of the model: SHA-256 over all bases."""
    version: int | None
    """Of the store, as the worker knew it: where to look first; the id decides."""


@dataclass(frozen=True, eq=False)
class Coordinates:
    """One module in the bases of a version.

    dW = [left_basis, left_temporary] left ([right_basis, right_temporary] right)^T
    """

    left: Tensor
    """(k_left + phi_left) x p."""
    right: Tensor
    """(k_right + phi_right) x p."""
    left_temporary: Tensor | None = None
    """n x phi_left; None: phi_left is 0."""
    right_temporary: Tensor | None = None
    """d x phi_right; None: phi_right is 0."""


@dataclass(frozen=True, eq=False)
class Plain:
    """One module as LoRA factors: dW = scaling * up @ down."""

    up: Tensor
    """n x r."""
    down: Tensor
    """r x d."""
    scaling: float
    shape: ModuleShape


Update: TypeAlias = Coordinates | Plain


@dataclass(frozen=True, eq=False)
class Contribution:
    """One task, with all that is needed to merge it into any later version."""

    task: str
    base: BaseModel
    fingerprint: str | None
    """Of the version trained against, or of the modules where there is none; None: not known."""
    basis: Basis | None
    """None: all updates are ``Plain``; else all are ``Coordinates``."""
    updates: Mapping[str, Update]
    """Adapted module -> update."""
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """Heads and the like, by the key in the adapter's file."""
    config: Mapping[str, object] = field(default_factory=dict)
    """What an export needs (see ``Adapter.config``)."""
    provenance: Provenance = LEARNED

    def __post_init__(self) -> None:
        for name in ("updates", "kept", "config"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))


def check_task_name(name: str) -> None:
    """Refuse names that somebody could take for a path, or cannot print.

    Raises:
        ContributionError: it is one of those.
    """
    why = _name_problem(name)
    if why:
        shown = repr(name[:80])
        raise ContributionError(f"task {shown}", why, "Hand it in under another name: --task NAME")


def _name_problem(name: str) -> str:
    if not name.strip():
        return "the name is empty"
    if len(name) > MAX_NAME:
        return f"a name of {len(name)} characters, more than {MAX_NAME}"
    if "/" in name or "\\" in name or name in (".", ".."):
        return "the name looks like a path"
    if not name.isprintable():
        return "the name has characters that cannot be printed"
    return ""
