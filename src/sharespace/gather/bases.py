"""The bases that a contribution was trained in, out of a store's history."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sharespace.errors import ContributionError, CorruptStoreError, StoreNotFoundError
from sharespace.gather.contribution import Basis
from sharespace.store import checkout, history
from sharespace.subspace.identity import basis_id
from sharespace.subspace.state import ShareModel

_REMEMBERED = 8
"""Versions whose bases stay open."""


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
