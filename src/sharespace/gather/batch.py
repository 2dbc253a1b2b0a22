"""One batch of contributions and one version: which of them can be merged, and the result.

A contribution of any older version becomes an adapter that the current version can merge exactly:
the bases that it was trained in are looked up in the store's history (``BasisHistory``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sharespace.errors import (
    AdapterError,
    ContributionError,
    CorruptStoreError,
    MismatchError,
    OptionError,
    SharespaceError,
    StoreError,
    StoreNotFoundError,
    TaskExistsError,
)
from sharespace.gather.contribution import (
    BasisReference,
    Contribution,
    PlainFactors,
    plain_updates,
)
from sharespace.linalg.precision import compute_dtype
from sharespace.store import Checkout, Operation, checkout, history
from sharespace.store.commits import plan_commit
from sharespace.subspace.adapter import (
    Adapter,
    LayerUpdate,
    Provenance,
    common_base,
    common_shapes,
    fingerprint,
    refuse_other_modules,
)
from sharespace.subspace.base_weights import check_same_base
from sharespace.subspace.build import refuse_erased
from sharespace.subspace.fidelity import refuse_losses
from sharespace.subspace.merge import merge
from sharespace.subspace.naming import common_names
from sharespace.subspace.state import MAX_NAME, ShareModel, basis_id

OnConflict = Literal["refuse", "rename", "replace"]
"""What happens to a contribution whose task's name is taken by other content."""

REFUSED = (ContributionError, AdapterError, MismatchError, OptionError, TaskExistsError)
"""Errors that are the contribution's, not the store's or the disk's."""

_UNFORESEEN = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""What torch and Python raise for values that nobody thought of: the contribution's as well, where
the same work is done without it. Errors of the store are none of these."""

_ADD_MODULES = (
    "Check that it is of this base model; where it is, and is to bring new modules: "
    "gather --new-modules"
)

_OPEN_VERSIONS = 8
"""Most versions whose bases stay open; each holds as many file descriptors and mapped bytes as its
bases have, and workers rarely lag behind by more."""


@dataclass(frozen=True, eq=False)
class PendingContribution:
    """A contribution that was read and is whole."""

    file: str
    """Its name in the inbox."""
    id: str
    """SHA-256 (hex) of the bytes of its file."""
    contribution: Contribution
    data: bytes


@dataclass(frozen=True, eq=False)
class AcceptedContribution:
    """A contribution on its way into the model."""

    pending: PendingContribution
    adapter: Adapter
    replaces: bool
    """True where a task of that name goes when this one comes."""


@dataclass(eq=False)
class SortedBatch:
    """A batch, sorted out against one version."""

    accepted: list[AcceptedContribution] = field(default_factory=list)
    repeated: list[PendingContribution] = field(default_factory=list)
    """Contributions that were merged before."""
    refused: list[tuple[PendingContribution, SharespaceError]] = field(default_factory=list)
    later: list[PendingContribution] = field(default_factory=list)
    """Contributions with the name of another one in the batch; they come into the next."""


def sort_out(
    pending: Sequence[PendingContribution],
    opened: Checkout,
    bases: BasisHistory,
    on_conflict: OnConflict,
    new_modules: bool = False,
) -> SortedBatch:
    """Sort a batch out against one version; the order of the files does not matter.

    Args:
        pending: the batch.
        opened: the version.
        bases: where the bases of older versions are found.
        on_conflict: what happens where a task's name is taken.
        new_modules: take plain factors of modules that the Share model does not have.
    """
    result, names = SortedBatch(), set[str]()
    known_ids, tasks = set(opened.manifest.contributions), set(opened.model.tasks)
    # By id, so that two gatherers with the same files come to the same model.
    for one in sorted(pending, key=lambda p: p.id):
        if one.id in known_ids:
            result.repeated.append(one)
            continue
        try:
            name = _task_name(one, tasks, on_conflict)
            if name in names:
                result.later.append(one)
                continue
            adapter = as_adapter(one.contribution, one.id, name, opened.model, bases)
            if one.contribution.basis is None and not new_modules:
                refuse_other_modules(adapter, opened.model.shapes, "the Share model", _ADD_MODULES)
        except (*REFUSED, *_UNFORESEEN) as error:
            result.refused.append((one, _reason(one.contribution.task, error)))
            continue
        names.add(name)
        result.accepted.append(AcceptedContribution(one, adapter, name in tasks))
    return result


def _task_name(one: PendingContribution, tasks: set[str], on_conflict: OnConflict) -> str:
    """The name that the task gets in the model.

    Raises:
        ContributionError: it is taken, and is not to be changed or replaced.
    """
    name = one.contribution.task
    if name not in tasks or on_conflict == "replace":
        return name
    # Made from the id and not from a counter: the same contribution gets the same name again.
    renamed = f"{name[: MAX_NAME - 9]}-{one.id[:8]}"
    if on_conflict == "rename" and renamed not in tasks:
        return renamed
    why = "there is a task of that name already, with other content"
    remedy = "Submit it with --task NAME, or gather with --on-conflict rename or replace"
    raise ContributionError(f"task {name!r}", why, remedy)


def as_adapter(
    contribution: Contribution, id: str, task: str, model: ShareModel, bases: BasisHistory
) -> Adapter:
    """The contribution as an adapter for the current model.

    Args:
        contribution: as it was read.
        id: of the contribution.
        task: name that the task gets.
        model: the current version.
        bases: where those of older versions are found.

    Raises:
        ContributionError: its bases are not known, its tensors do not fit them, or it belongs to
            another base model.
        MismatchError: a module has another shape than in the model.
    """
    if contribution.basis is None:
        plain = {m: u for m, u in contribution.updates.items() if isinstance(u, PlainFactors)}
        _check_fingerprint(contribution, fingerprint({m: u.shape for m, u in plain.items()}))
        provenance = contribution.provenance
    else:
        trained_in = bases.find(contribution.basis)
        _check_fingerprint(contribution, trained_in.fingerprint)
        plain = plain_updates(contribution.updates, trained_in, compute_dtype(model.dtype))
        # A task that was learned here names its contribution; an adapter stays what it was.
        provenance = Provenance(contribution.provenance.format, f"contribution-{id[:12]}", id)
    adapter = Adapter.from_updates(
        task,
        {m: LayerUpdate(u.up, u.down, u.scaling) for m, u in plain.items()},
        base=contribution.base,
        shapes={m: u.shape for m, u in plain.items()},
        kept=contribution.kept,
        config=contribution.config,
        provenance=provenance,
    )
    adapter = replace(
        adapter,
        files=contribution.files,
        labels=contribution.labels,
        base_samples=contribution.base_samples,
    )
    try:
        common_base([adapter], model.base)
        adapter = common_names([adapter], model)[0]
        check_same_base(f"adapter {task!r}", model.base_samples, adapter.base_samples)
    except MismatchError as error:
        remedy = (
            "Gather it into the Share model of its base, or correct the name and submit it anew"
        )
        raise ContributionError(error.what, error.why, remedy) from error
    common_shapes([adapter], model.shapes)
    return adapter


def _check_fingerprint(contribution: Contribution, wanted: str) -> None:
    if contribution.fingerprint is not None and contribution.fingerprint != wanted:
        why = "its fingerprint is not that of the modules: made for another base model"
        raise ContributionError("the contribution", why, "Gather it into the store it belongs to")


def merge_batch(
    model: ShareModel,
    batch: SortedBatch,
    device: torch.device | str = "cpu",
    max_error: float | None = None,
) -> tuple[ShareModel, list[AcceptedContribution]]:
    """The model with all that can be merged; what cannot goes from accepted to refused.

    All of it is merged at once, or one by one where that fails.

    Args:
        model: the version.
        batch: sorted out against it; ``refused`` grows.
        device: where to compute.
        max_error: what would leave a task with a larger bound on its relative error is refused.
    """
    try:
        return _merged(model, batch.accepted, device, max_error), batch.accepted
    except (*REFUSED, *_UNFORESEEN):
        # One of them is at fault, and the error does not say which.
        merged: list[AcceptedContribution] = []
        for one in batch.accepted:
            try:
                model = _merged(model, [one], device, max_error)
                merged.append(one)
            except (*REFUSED, *_UNFORESEEN) as error:
                batch.refused.append((one.pending, _reason(one.adapter.name, error)))
        return model, merged


def refuse_unwritable(
    model: ShareModel,
    accepted: Sequence[AcceptedContribution],
    device: torch.device | str = "cpu",
) -> list[tuple[PendingContribution, SharespaceError]]:
    """Those of a batch that could be merged, but that no version can be written with.

    Each is merged alone and planned as a version, which writes nothing.

    Args:
        model: the version that they were merged into.
        accepted: what ``merge_batch`` merged.
        device: where to compute.
    """
    refused: list[tuple[PendingContribution, SharespaceError]] = []
    for one in accepted:
        merged = _merged(model, [one], device, None)
        try:
            plan_commit(merged, Operation("gather", (one.adapter.name,)))
        except (CorruptStoreError, StoreNotFoundError):
            raise  # A file of the store itself.
        except (*REFUSED, *_UNFORESEEN, StoreError) as error:
            refused.append((one.pending, _reason(one.adapter.name, error)))
    return refused


def _reason(task: str, error: Exception) -> SharespaceError:
    """Why a contribution was refused, as an error that has a remedy."""
    if isinstance(error, SharespaceError):
        return error
    if isinstance(error, LinAlgError):
        why = f"its numbers cannot be decomposed ({error})"
        return ContributionError(f"task {task!r}", why, "Train it again")
    text = str(error).strip().splitlines()
    why = f"it cannot be merged ({type(error).__name__}: {text[0][:200] if text else 'no reason'})"
    return ContributionError(f"task {task!r}", why, "Hand in what training made")


def _merged(
    model: ShareModel,
    accepted: Sequence[AcceptedContribution],
    device: torch.device | str,
    max_error: float | None,
) -> ShareModel:
    if not accepted:
        return model
    remaining = model.without_tasks(*(a.adapter.name for a in accepted if a.replaces))
    # The base is the model's own: a contribution must not name it anew.
    result = merge(remaining, [a.adapter for a in accepted], base=model.base, device=device)
    refuse_erased(result)
    refuse_losses(remaining, result, max_error)
    return result


class BasisHistory:
    """The bases of a store's versions, looked up by their id."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = Path(root)
        self._ids: dict[str, str] = {}
        """SHA-256 of a file of bases -> basis id; many versions share one file."""
        self._models: dict[str, ShareModel] = {}
        self._damaged: dict[int, str] = {}

    def find(self, wanted: BasisReference) -> ShareModel:
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
            for old in list(self._models)[:-_OPEN_VERSIONS]:
                del self._models[old]
        return self._models[wanted.id]

    def _candidates(self, wanted: BasisReference) -> Iterator[int]:
        """The version that the worker names, then all others: after a rollback or in a copy of the
        store, another version may have the same bases."""
        if wanted.version is not None:
            yield wanted.version
        yield from (v.number for v in reversed(history(self._root)) if v.number != wanted.version)

    def _open(self, number: int, wanted: BasisReference) -> ShareModel | None:
        """The model of that version where it has the bases; None where not, or not any more."""
        try:
            opened = checkout(self._root, number)
            file = opened.manifest.content.basis.sha256
            if file not in self._ids:
                self._ids[file] = basis_id(opened.model)
            if self._ids[file] != wanted.id:
                return None
            for _ in opened.model.layers.values():
                pass  # Each layer is mapped now, and stays readable whoever prunes the version.
        except StoreNotFoundError:
            return None
        except CorruptStoreError as error:
            # A version pruned between its listing and its reading looks damaged, too.
            if number in (v.number for v in history(self._root)):
                self._damaged[number] = f"{error.what}: {error.why}"
            return None
        return opened.model

    def _unknown(self, wanted: BasisReference) -> ContributionError:
        numbers = [v.number for v in history(self._root)]
        asked = wanted.version
        if asked is not None and asked in self._damaged:
            why = f"it was trained in version {asked}, which is damaged ({self._damaged[asked]})"
            remedy = "See `sharespace verify --all`; repaired, move it back into the inbox"
        elif asked is not None and asked > numbers[-1]:
            why = f"it was trained in version {asked}, which this store does not have yet"
            remedy = "Gather it into the store that the worker used"
        elif asked is not None and asked not in numbers:
            why = f"it was trained in version {asked}, which was pruned"
            remedy = (
                "Where a copy of that version is left: submit --plain; else train it again in "
                f"version {numbers[-1]}"
            )
        else:
            at = "" if asked is None else f" of version {asked}"
            why = f"no version of this store has the bases {wanted.id[:12]}{at}"
            remedy = "Gather it into the store that the worker used, or submit --plain"
        return ContributionError("the contribution", why, remedy)
