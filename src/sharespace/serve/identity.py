"""Which task, version and content an answer comes from.

Every answer says it: in headers and in ``system_fingerprint`` over HTTP, and in a line of the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote
from weakref import WeakKeyDictionary

from torch import Tensor

from sharespace.formats.engines import requested_weights
from sharespace.share import Share
from sharespace.subspace.combine import stored_task
from sharespace.subspace.state import ShareModel, Task, basis_id, digest_basis

_HASHES: WeakKeyDictionary[ShareModel, dict[str, str]] = WeakKeyDictionary()
"""Model -> task -> ``content_hash``, as far as they were asked for."""


@dataclass(frozen=True)
class AnswerSource:
    """What an answer was computed with; two of the same hash give the same answers."""

    task: str
    """The task's or mixture's name, as it was asked for."""
    version: int | None
    """Number of the stored version that has this content; None: it was not saved."""
    sha256: str
    """``content_hash`` of the task; of a mixture that of its weights and parts."""

    @property
    def fingerprint(self) -> str:
        """The version and the first digits of the hash, as one word."""
        return f"share-{self.version or 'unsaved'}-{self.sha256[:16]}"

    @property
    def headers(self) -> dict[str, str]:
        """Headers of an HTTP answer; a name is percent-encoded UTF-8, as headers hold ASCII."""
        version = {} if self.version is None else {"x-sharespace-version": str(self.version)}
        return {
            "x-sharespace-task": quote(self.task, safe=" :+@/"),
            **version,
            "x-sharespace-sha256": self.sha256,
        }


def source_of(share: Share, task: str | None) -> AnswerSource | None:
    """Where an answer of this task comes from; None: the base model alone.

    Raises:
        TaskNotFoundError: the Share model has no such task.
    """
    if task is None:
        return None
    weights = requested_weights(share.model, task)
    if task in weights:
        return AnswerSource(task, share.saved_version, content_hash(share.model, task))
    digest = hashlib.sha256()
    for part, weight in weights.items():
        digest.update(f"{content_hash(share.model, part)}:{weight!r}\n".encode())
    return AnswerSource(task, share.saved_version, digest.hexdigest())


def content_hash(model: ShareModel, task: str) -> str:
    """SHA-256 (hex) of all that decides a task's answers, but the base model.

    That is the bases (``basis_id``), the task's coefficients, its heads, its labels and its files.
    The name is no part of it.

    Args:
        model: has the task; its hashes are remembered as long as it is there.
        task: name of a task, not of a mixture.

    Raises:
        TaskNotFoundError: there is none of that name.
    """
    known = _HASHES.setdefault(model, {})
    if task not in known:
        known[task] = _hashed(basis_id(model), stored_task(model, task))
    return known[task]


def _hashed(basis: str, task: Task) -> str:
    digest = hashlib.sha256(basis.encode())
    for module in sorted(task.coefficients):
        value = task.coefficients[module]
        digest.update(f"\n{module}\t{value.offset}".encode("utf-8", "surrogatepass"))
        _digest_all(digest, value.stored_tensors())
    for tensors in (task.kept, task.files):
        digest.update(b"\n")
        _digest_all(digest, tensors)
    digest.update(repr(task.labels).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _digest_all(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    for key in sorted(tensors):
        digest.update(f"\n{key}".encode("utf-8", "surrogatepass"))
        tensor = tensors[key]
        digest_basis(digest, tensor if tensor.ndim else tensor.reshape(1))
