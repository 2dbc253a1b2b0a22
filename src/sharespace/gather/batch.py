"""One batch of contributions and one model: what comes in, what does not, and the result.

A contribution of any version as an adapter that the current version can merge, exactly.

The bases that a contribution was trained in, out of a store's history.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sharespace.errors import (
    AdapterError,
    ContributionError,
    CorruptStoreError,
    MismatchError,
    OptionError,
    SharespaceError,
    StoreNotFoundError,
    TaskExistsError,
)
from sharespace.gather.contribution import Basis, Contribution, Coordinates, Plain
from sharespace.linalg.precision import compute_dtype
from sharespace.store import Checkout, checkout, history
from sharespace.subspace.adapter import (
    Adapter,
    LayerUpdate,
    ModuleShape,
    Provenance,
    common_base,
    common_shapes,
    fingerprint,
)
from sharespace.subspace.build import refuse_erased
from sharespace.subspace.merge import merge
from sharespace.subspace.state import LayerSubspace, ShareModel, basis_id

OnConflict = Literal["refuse", "rename", "replace"]
"""What happens to a contribution whose task's name is taken by other content."""

REFUSED = (ContributionError, AdapterError, MismatchError, OptionError, TaskExistsError)
"""Errors that are the contribution's, not the store's or the disk's."""

_REMEMBERED = 8
"""Versions whose bases stay open."""


@dataclass(frozen=True, eq=False)
class Pending:
    """A contribution that was read and is whole."""

    file: str
    id: str
    """SHA-256 of its bytes."""
    found: Contribution
    data: bytes


@dataclass(frozen=True, eq=False)
class Accepted:
    """A contribution on its way into the model."""

    pending: Pending
    adapter: Adapter
    replaces: bool
    """A task of that name goes when this one comes."""


@dataclass(eq=False)
class Sorted:
    """A batch, sorted out against one version."""

    accepted: list[Accepted] = field(default_factory=list)
    repeated: list[Pending] = field(default_factory=list)
    """Merged before."""
    refused: list[tuple[Pending, SharespaceError]] = field(default_factory=list)
    later: list[Pending] = field(default_factory=list)
    """Of a name that another one of the batch has."""


def sort_out(
    pending: Sequence[Pending], opened: Checkout, bases: Bases, on_conflict: OnConflict
) -> Sorted:
    """What of a batch can be merged into a version; in the order of the ids."""
    found, names = Sorted(), set[str]()
    known, tasks = set(opened.manifest.contributions), set(opened.model.tasks)
    for one in sorted(pending, key=lambda p: p.id):
        if one.id in known:
            found.repeated.append(one)
            continue
        try:
            name = _name(one, tasks, on_conflict)
            if name in names:
                found.later.append(one)
                continue
            adapter = as_adapter(one.found, one.id, name, opened.model, bases)
        except REFUSED as error:
            found.refused.append((one, error))
            continue
        names.add(name)
        found.accepted.append(Accepted(one, adapter, name in tasks))
    return found


def _name(one: Pending, tasks: set[str], on_conflict: OnConflict) -> str:
    """The name that it gets.

    Raises:
        ContributionError: it is taken, and is not to be changed or replaced.
    """
    name = one.found.task
    if name not in tasks or on_conflict == "replace":
        return name
    other = f"{name}-{one.id[:8]}"
    if on_conflict == "rename" and other not in tasks:
        return other
    why = "there is a task of that name already, with other content"
    remedy = "Submit it with --task NAME, or gather with --on-conflict rename or replace"
    raise ContributionError(f"task {name!r}", why, remedy)


def merged(
    model: ShareModel, found: Sorted, device: torch.device | str = "cpu"
) -> tuple[ShareModel, list[Accepted]]:
    """The model with all that can be merged; what cannot goes from accepted to refused.

    At once, or one by one where together they cannot.
    """
    try:
        return _with(model, found.accepted, device), found.accepted
    except (*REFUSED, LinAlgError):
        done: list[Accepted] = []
        for one in found.accepted:
            try:
                model = _with(model, [one], device)
                done.append(one)
            except REFUSED as error:
                found.refused.append((one.pending, error))
            except LinAlgError as error:
                why = f"its numbers cannot be decomposed ({error})"
                wrong = ContributionError(f"task {one.adapter.name!r}", why, "Train it again")
                found.refused.append((one.pending, wrong))
        return model, done


def _with(
    model: ShareModel, accepted: Sequence[Accepted], device: torch.device | str
) -> ShareModel:
    if not accepted:
        return model
    kept = model.without_tasks(*(a.adapter.name for a in accepted if a.replaces))
    # The base is the model's own: a contribution must not name it anew.
    result = merge(kept, [a.adapter for a in accepted], base=model.base, device=device)
    refuse_erased(result)
    return result


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


class Bases:
    """The bases of a store's versions, found by their id."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = Path(root)
        self._ids: dict[str, str] = {}
        self._models: dict[str, ShareModel] = {}
        self._damaged: dict[int, str] = {}

    def find(self, wanted: Basis) -> ShareModel:
        """A model with exactly these bases, bit for bit.

        Raises:
            ContributionError: no version that is still there has them.
        """
        if wanted.id not in self._models:
            for number in self._candidates(wanted):
                model = self._open(number, wanted)
                if model is not None:
                    self._models[wanted.id] = model
                    break
            else:
                raise self._unknown(wanted)
            for old in list(self._models)[:-_REMEMBERED]:
                del self._models[old]
        return self._models[wanted.id]

    def _candidates(self, wanted: Basis) -> Iterator[int]:
        if wanted.version is not None:
            yield wanted.version
        yield from (v.number for v in reversed(history(self._root)) if v.number != wanted.version)

    def _open(self, number: int, wanted: Basis) -> ShareModel | None:
        """The model of that version where it has the bases; None where not, or not any more."""
        try:
            opened = checkout(self._root, number)
            file = opened.manifest.content.basis.sha256
            if file not in self._ids:
                self._ids[file] = basis_id(opened.model)
            if self._ids[file] != wanted.id:
                return None
            for _ in opened.model.layers.values():
                pass  # from here on they are mapped, whoever prunes
        except StoreNotFoundError:
            return None
        except CorruptStoreError as error:
            if number in (v.number for v in history(self._root)):
                self._damaged[number] = f"{error.what}: {error.why}"
            return None
        return opened.model

    def _unknown(self, wanted: Basis) -> ContributionError:
        known = [v.number for v in history(self._root)]
        asked = wanted.version
        if asked is not None and asked in self._damaged:
            why = f"it was trained in version {asked}, which is damaged ({self._damaged[asked]})"
            remedy = "See `sharespace verify --all`; repaired, move it back into the inbox"
        elif asked is not None and asked > known[-1]:
            why = f"it was trained in version {asked}, which this store does not have yet"
            remedy = "Gather it into the store that the worker used"
        elif asked is not None and asked not in known:
            why = f"it was trained in version {asked}, which was pruned"
            remedy = (
                "Where a copy of that version is left: submit --plain; else train it again in "
                f"version {known[-1]}"
            )
        else:
            at = "" if asked is None else f" of version {asked}"
            why = f"no version of this store has the bases {wanted.id[:12]}{at}"
            remedy = "Gather it into the store that the worker used, or submit --plain"
        return ContributionError("the contribution", why, remedy)
