"""What a worker hands in: one task, in the bases of a version or as plain LoRA factors.

Checks of a contribution's tensors that need no Share model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from sharespace.errors import ContributionError
from sharespace.subspace.adapter import LEARNED, BaseModel, ModuleShape, Provenance

NAME = re.compile(r"contribution-(?P<sha256>[0-9a-f]{64})\.safetensors", re.ASCII)
"""File name of a contribution; the hash is that of its bytes, and its id."""

MAX_NAME = 200
"""Characters of a task's name."""


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

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes that an update may have."""

LARGEST = 1e15
"""Bound on an update's norm: squares of it still fit into float32."""


@dataclass(frozen=True)
class Basis:
    """Which bases coefficients belong to."""

    id: str
    """``basis_id`` of the model: SHA-256 over all bases."""
    version: int | None
    """Of the store, as the worker knew it: where to look first; the id decides."""


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


def check_updates(updates: Mapping[str, Update]) -> None:
    """Refuse shapes that do not fit each other, and values that cannot be merged.

    Raises:
        ContributionError: as said.
    """
    for module, update in updates.items():
        if isinstance(update, Coordinates):
            _check_coordinates(module, update)
            continue
        if update.up.shape[1] != update.down.shape[0]:
            _misfit(module, update.up, update.down)
        _check_shape(module, update.shape)
        if not math.isfinite(update.scaling):
            raise _not_finite(module)
        _check_norm(module, abs(update.scaling) * _norm(update.up) * _norm(update.down))


def _check_coordinates(module: str, update: Coordinates) -> None:
    left = check_tensor(f"{module}.left", update.left, 2)
    right = check_tensor(f"{module}.right", update.right, 2)
    if left.shape[1] != right.shape[1]:
        _misfit(module, left, right)
    bound = 1.0
    for matrix, temporary in ((left, update.left_temporary), (right, update.right_temporary)):
        size = 1.0
        if temporary is not None:
            check_tensor(f"{module}: temporary directions", temporary, 2)
            if temporary.shape[1] > matrix.shape[0]:
                _misfit(module, matrix, temporary)
            size = max(1.0, _norm(temporary))
        bound *= _norm(matrix) * 2 * size
    _check_norm(module, bound)


def check_kept(kept: Mapping[str, Tensor]) -> None:
    """Refuse heads that are not finite: the training diverged.

    Raises:
        ContributionError: as said, or a key that no file can have.
    """
    for key, tensor in kept.items():
        if not key or key == "__metadata__":
            raise ContributionError(f"kept tensor {key!r}", "no key of a tensor", "Rename it")
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise _not_finite(f"kept tensor {key!r}")


def check_tensor(what: str, tensor: Tensor, dimensions: int) -> Tensor:
    """The tensor, where it has these dimensions and finite numbers.

    Raises:
        ContributionError: it has not.
    """
    if tensor.ndim != dimensions or tensor.dtype not in FLOATS:
        why = f"{tensor.dtype} {list(tensor.shape)} where {dimensions} dimensions of floats belong"
        raise ContributionError(what, why, "Hand in what training made")
    if not torch.isfinite(tensor).all():
        raise _not_finite(what)
    return tensor


def _norm(matrix: Tensor) -> float:
    return float(matrix.double().norm())


def _check_norm(module: str, bound: float) -> None:
    if not bound <= LARGEST:
        why = f"an update of a norm of up to {bound:.0e}"
        raise ContributionError(f"module {module!r}", why, "Look for a training that diverged")


def _check_shape(module: str, shape: ModuleShape) -> None:
    if (shape.kind == "conv") != bool(shape.kernel) or shape.in_features % math.prod(shape.kernel):
        why = f"a kernel of {shape.kernel} does not fit {shape}"
        raise ContributionError(f"module {module!r}", why, "Hand in what training made")


def _misfit(module: str, first: Tensor, second: Tensor) -> None:
    why = f"tensors of {list(first.shape)} and {list(second.shape)} do not fit each other"
    raise ContributionError(f"module {module!r}", why, "Hand in what training made")


def _not_finite(what: str) -> ContributionError:
    why = "values that are not finite (NaN or infinity)"
    return ContributionError(what, why, "Look for a training that diverged")
