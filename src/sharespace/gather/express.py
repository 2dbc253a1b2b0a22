"""A contribution of any version as an adapter that the current version can merge, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from sharespace.errors import ContributionError, MismatchError
from sharespace.gather.bases import Bases
from sharespace.gather.contribution import Contribution, Coordinates, Plain
from sharespace.linalg.precision import compute_dtype
from sharespace.shapes import ModuleShape, fingerprint
from sharespace.subspace.adapter import Adapter, LayerUpdate, Provenance
from sharespace.subspace.compatible import common_base, common_shapes
from sharespace.subspace.state import LayerSubspace, ShareModel


def as_adapter(found: Contribution, id: str, task: str, model: ShareModel, bases: Bases) -> Adapter:
    """The contribution as an adapter for the current model.

    Args:
        id: of the contribution.
        task: name that it gets.
        model: the current version.
        bases: where those of older versions are found.

    Raises:
        ContributionError: its bases are not known, or its tensors do not fit them.
        MismatchError: it belongs to another base model.
    """
    if found.basis is None:
        adapter = _plain_adapter(found, id, task)
    else:
        adapter = _trained_adapter(found, id, task, bases.find(found.basis), model.dtype)
    _check_base(adapter, model)
    common_shapes([adapter], model.shapes)
    return adapter


def _check_base(adapter: Adapter, model: ShareModel) -> None:
    try:
        common_base([adapter], model.base)
    except MismatchError as error:
        remedy = (
            "Gather it into the Share model of its base, or correct the name and submit it anew"
        )
        raise ContributionError(error.what, error.why, remedy) from error


def _plain_adapter(found: Contribution, id: str, task: str) -> Adapter:
    plain = {m: u for m, u in found.updates.items() if isinstance(u, Plain)}
    shapes = {m: u.shape for m, u in plain.items()}
    _check_fingerprint(found, fingerprint(shapes))
    return Adapter.from_updates(
        task,
        {m: LayerUpdate(u.up, u.down, u.scaling) for m, u in plain.items()},
        base=found.base,
        shapes=shapes,
        kept=found.kept,
        config=found.config,
        provenance=_provenance(found, id),
    )


def _trained_adapter(
    found: Contribution, id: str, task: str, trained_in: ShareModel, stored: torch.dtype
) -> Adapter:
    _check_fingerprint(found, trained_in.fingerprint)
    dtype = compute_dtype(stored)
    updates: dict[str, LayerUpdate] = {}
    shapes: dict[str, ModuleShape] = {}
    for module, update in found.updates.items():
        if module not in trained_in.layers or not isinstance(update, Coordinates):
            raise ContributionError(
                f"module {module!r}",
                "the version it was trained in has no such module",
                "Hand in what training made",
            )
        layer = trained_in.layers[module]
        shapes[module] = layer.shape
        updates[module] = _multiplied(module, update, layer, dtype)
    return Adapter.from_updates(
        task,
        updates,
        base=found.base,
        shapes=shapes,
        kept=found.kept,
        config=found.config,
        provenance=_provenance(found, id),
    )


def _check_fingerprint(found: Contribution, wanted: str) -> None:
    if found.fingerprint is not None and found.fingerprint != wanted:
        why = "its fingerprint is not that of the modules: made for another base model"
        raise ContributionError("the contribution", why, "Gather it into the store it belongs to")


def _multiplied(
    module: str, update: Coordinates, layer: LayerSubspace, dtype: torch.dtype
) -> LayerUpdate:
    up = expand(f"{module}, left", layer.left_basis, update.left, update.left_temporary)
    right = expand(f"{module}, right", layer.right_basis, update.right, update.right_temporary)
    return LayerUpdate(up.to(dtype), right.mT.contiguous().to(dtype))


def expand(what: str, basis: Tensor, coefficients: Tensor, temporary: Tensor | None) -> Tensor:
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
            "Hand in what training made",
        )
    wide = coefficients.double()
    product: Tensor = basis.double() @ wide[:k]
    return product if temporary is None else product + temporary.double() @ wide[k:]


def _provenance(found: Contribution, id: str) -> Provenance:
    """A learned task names its contribution, an adapter stays what it was."""
    if found.basis is None:
        return found.provenance
    return Provenance(found.provenance.format, f"contribution-{id[:12]}", id)
