"""One batch of contributions and one model: what comes in, what does not, and the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sharespace.errors import (
    AdapterError,
    ContributionError,
    MismatchError,
    OptionError,
    SharespaceError,
    TaskExistsError,
)
from sharespace.gather.bases import Bases
from sharespace.gather.contribution import Contribution
from sharespace.gather.express import as_adapter
from sharespace.store import Checkout
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.erased import refuse_erased
from sharespace.subspace.merge import merge
from sharespace.subspace.state import ShareModel

OnConflict = Literal["refuse", "rename", "replace"]
"""What happens to a contribution whose task's name is taken by other content."""

REFUSED = (ContributionError, AdapterError, MismatchError, OptionError, TaskExistsError)
"""Errors that are the contribution's, not the store's or the disk's."""


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
