"""What a worker hands in: one task, in the bases of a version or as plain LoRA factors.

The checks here need no Share model: they refuse what could be merged into none.
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
from sharespace.subspace.adapter import LEARNED, BaseModel, ModuleShape, Provenance, is_companion
from sharespace.subspace.base_weights import sample_shape
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import ShareModel, name_problem

NAME = re.compile(r"contribution-(?P<sha256>[0-9a-f]{64})\.safetensors", re.ASCII)
"""File name of a contribution; the hash is that of its bytes, and its id."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes that an update may have."""

LARGEST = 1e15
"""Bound on an update's norm: squares of it still fit into float32."""

_RETRAIN = "Hand in what training made"


@dataclass(frozen=True, eq=False)
class Contribution:
    """One task, with all that is needed to merge it into any later version."""

    task: str
    """Name that the task asks for; ``gather`` may give it another (``on_conflict``)."""
    base: BaseModel
    """The base model that it was trained on."""
    fingerprint: str | None
    """``subspace.adapter.fingerprint`` of the version trained in, or of the modules where there is
    no version; None: not known."""
    basis: BasisReference | None
    """None: all updates are ``PlainFactors``; else all are ``Coordinates``."""
    updates: Mapping[str, ModuleUpdate]
    """Adapted module -> update."""
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """Heads and other tensors that are no updates, by the key in the adapter's file."""
    config: Mapping[str, object] = field(default_factory=dict)
    """What an export needs (see ``Adapter.config``)."""
    files: Mapping[str, Tensor] = field(default_factory=dict)
    """Tokenizer and chat template (see ``Adapter.files``)."""
    labels: tuple[str, ...] = ()
    """Names of the classes (see ``Adapter.labels``)."""
    base_samples: Mapping[str, Tensor] = field(default_factory=dict)
    """Of the base weights that it was trained on (see ``Adapter.base_samples``)."""
    provenance: Provenance = LEARNED
    """Where the adapter came from; ``LEARNED`` for a task that was trained in the subspace."""

    def __post_init__(self) -> None:
        for name in ("updates", "kept", "files", "base_samples", "config"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))


@dataclass(frozen=True)
class BasisReference:
    """Names the bases that coefficients belong to."""

    id: str
    """``basis_id`` of the model: SHA-256 over all bases."""
    version: int | None
    """Version of the store, as the worker knew it. It says where to look first; the id decides,
    because the numbers of two stores mean different bases."""


@dataclass(frozen=True, eq=False)
class Coordinates:
    """One module's update in the bases of a version.

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

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by the name of their field."""
        fields = ("left", "right", "left_temporary", "right_temporary")
        return {n: tensor for n in fields if (tensor := getattr(self, n)) is not None}

    def check(self, module: str) -> None:
        """Refuse shapes that do not fit each other, and values that cannot be merged.

        Args:
            module: name of the module, for the error.

        Raises:
            ContributionError: the update has one of these.
        """
        left = check_tensor(f"{module}.left", self.left, 2)
        right = check_tensor(f"{module}.right", self.right, 2)
        if left.shape[1] != right.shape[1]:
            raise _misfit(module, left, right)
        bound = 1.0
        for matrix, temporary in ((left, self.left_temporary), (right, self.right_temporary)):
            size = 1.0
            if temporary is not None:
                check_tensor(f"{module}: temporary directions", temporary, 2)
                if temporary.shape[1] > matrix.shape[0]:
                    raise _misfit(module, matrix, temporary)
                size = max(1.0, _norm(temporary))
            # [basis, temporary] has a norm of at most |basis| + |temporary| <= 1 + size <= 2 size;
            # the basis itself, orthonormal, is not needed to know it.
            bound *= _norm(matrix) * 2 * size
        _check_norm(module, bound)

    def plain(
        self, module: str, layer: LayerSubspace, dtype: torch.dtype | None = None
    ) -> PlainFactors:
        """The same update as plain factors.

        Args:
            module: name of the module, for the error.
            layer: its bases, those that the coefficients belong to.
            dtype: of the factors; None: that of the coefficients. The products are made in float64
                and rounded once.

        Raises:
            ContributionError: the shapes do not fit the bases.
        """
        up = _expand(f"{module}, left", layer.left_basis, self.left, self.left_temporary)
        right = _expand(f"{module}, right", layer.right_basis, self.right, self.right_temporary)
        dtype = dtype or self.left.dtype
        return PlainFactors(up.to(dtype), right.mT.contiguous().to(dtype), 1.0, layer.shape)


@dataclass(frozen=True, eq=False)
class PlainFactors:
    """One module's update as LoRA factors: dW = scaling * up @ down."""

    up: Tensor
    """B, the left factor of the update: n x r."""
    down: Tensor
    """A, the right factor of the update: r x d."""
    scaling: float
    shape: ModuleShape

    def tensors(self) -> dict[str, Tensor]:
        """Both factors, by the name of their field."""
        return {"up": self.up, "down": self.down}

    def check(self, module: str) -> None:
        """Refuse shapes that do not fit each other, and values that cannot be merged.

        Args:
            module: name of the module, for the error.

        Raises:
            ContributionError: the update has one of these.
        """
        if self.up.shape[1] != self.down.shape[0]:
            raise _misfit(module, self.up, self.down)
        kernel = self.shape.kernel
        no_kernel_fits = self.shape.in_features % math.prod(kernel)
        if (self.shape.kind == "conv") != bool(kernel) or no_kernel_fits:
            why = f"a kernel of {kernel} does not fit {self.shape}"
            raise ContributionError(f"module {module!r}", why, _RETRAIN)
        if not math.isfinite(self.scaling):
            raise _not_finite(module)
        _check_norm(module, abs(self.scaling) * _norm(self.up) * _norm(self.down))


ModuleUpdate: TypeAlias = Coordinates | PlainFactors


def plain_updates(
    updates: Mapping[str, ModuleUpdate], trained_in: ShareModel, dtype: torch.dtype | None = None
) -> dict[str, PlainFactors]:
    """Coordinates in the bases of a version as plain factors.

    Args:
        updates: adapted module -> coordinates.
        trained_in: the version with their bases.
        dtype: of the factors; None: that of each module's coefficients.

    Raises:
        ContributionError: the version has no such module, or other shapes.
    """
    plain: dict[str, PlainFactors] = {}
    for module, update in updates.items():
        if module not in trained_in.layers or not isinstance(update, Coordinates):
            raise ContributionError(
                f"module {module!r}",
                "the version it was trained in has no such module",
                _RETRAIN,
            )
        plain[module] = update.plain(module, trained_in.layers[module], dtype)
    return plain


def _expand(what: str, basis: Tensor, coefficients: Tensor, temporary: Tensor | None) -> Tensor:
    """[basis, temporary] @ coefficients in float64: n x p.

    Args:
        what: module and side, for errors.
        basis: n x k.
        coefficients: (k + phi) x p.
        temporary: n x phi, or None.

    Raises:
        ContributionError: the shapes do not fit.
    """
    (n, k), phi = basis.shape, 0 if temporary is None else temporary.shape[1]
    rows = n if temporary is None else temporary.shape[0]
    if coefficients.shape[0] != k + phi or rows != n:
        raise ContributionError(
            f"module {what}",
            f"{coefficients.shape[0]} rows of coefficients and {phi} temporary directions of "
            f"length {rows}, where the basis is {n} x {k}",
            _RETRAIN,
        )
    wide = coefficients.double()
    product: Tensor = basis.double() @ wide[:k]
    return product if temporary is None else product + temporary.double() @ wide[k:]


def check_task_name(name: str) -> None:
    """Refuse names that no new task may have (``subspace.state.name_problem``).

    Raises:
        ContributionError: the name is one of those.
    """
    if why := name_problem(name):
        # Cut, and as a Python literal: escape sequences in it must not reach a terminal.
        shown = repr(name[:80])
        raise ContributionError(f"task {shown}", why, "Hand it in under another name: --task NAME")


def check_kept(kept: Mapping[str, Tensor]) -> None:
    """Refuse heads that are not finite, because their training diverged.

    Raises:
        ContributionError: a head is not finite, or has a key that no file can have.
    """
    for key, tensor in kept.items():
        # safetensors keeps its own header entry under this key.
        if not key or key == "__metadata__":
            raise ContributionError(f"kept tensor {key!r}", "no key of a tensor", "Rename it")
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise _not_finite(f"kept tensor {key!r}")


def check_files(files: Mapping[str, Tensor]) -> None:
    """Refuse what is no file of an adapter's folder.

    Raises:
        ContributionError: a name that belongs to no adapter, or something else than bytes.
    """
    for name, tensor in files.items():
        if not is_companion(name) or tensor.dtype != torch.uint8 or tensor.ndim != 1:
            why = "not the bytes of a file that belongs to an adapter"
            raise ContributionError(f"file {name!r}", why, "Leave it out")


def check_samples(samples: Mapping[str, Tensor]) -> None:
    """Refuse what is no sample of a base weight.

    Raises:
        ContributionError: another shape or dtype, or values that are not finite.
    """
    for module, sample in samples.items():
        is_sample = sample.dtype == torch.float32 and sample.ndim == 2
        if not is_sample or tuple(sample.shape) != sample_shape(*sample.shape):
            raise ContributionError(f"module {module!r}", "no sample of its base weight", _RETRAIN)
        if not torch.isfinite(sample).all():
            raise _not_finite(f"sample of module {module!r}")


def check_tensor(what: str, tensor: Tensor, dimensions: int) -> Tensor:
    """The tensor, where it has these dimensions and finite numbers.

    Args:
        what: name of the tensor, for the error.
        tensor: as it was read.
        dimensions: number of dimensions that it must have.

    Raises:
        ContributionError: the tensor has other dimensions, or values that are not finite.
    """
    if tensor.ndim != dimensions or tensor.dtype not in FLOATS:
        why = f"{tensor.dtype} {list(tensor.shape)} where {dimensions} dimensions of floats belong"
        raise ContributionError(what, why, _RETRAIN)
    if not torch.isfinite(tensor).all():
        raise _not_finite(what)
    return tensor


def _norm(matrix: Tensor) -> float:
    # In float64: the squares of float16 values above 256 would overflow in their own dtype.
    return float(matrix.double().norm())


def _check_norm(module: str, bound: float) -> None:
    # "not <=" instead of ">": a NaN must be refused as well.
    if not bound <= LARGEST:
        why = f"an update of a norm of up to {bound:.0e}"
        raise ContributionError(f"module {module!r}", why, "Look for a training that diverged")


def _misfit(module: str, first: Tensor, second: Tensor) -> ContributionError:
    why = f"tensors of {list(first.shape)} and {list(second.shape)} do not fit each other"
    return ContributionError(f"module {module!r}", why, _RETRAIN)


def _not_finite(what: str) -> ContributionError:
    why = "values that are not finite (NaN or infinity)"
    return ContributionError(what, why, "Look for a training that diverged")
