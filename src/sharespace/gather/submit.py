"""Hand in: one file in an inbox, whole or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass

from sharespace.gather.codec import encode
from sharespace.gather.contribution import NAME, Contribution
from sharespace.gather.inbox import open_inbox
from sharespace.gather.saved import read_contribution


@dataclass(frozen=True)
class Submission:
    """What was handed in."""

    task: str
    id: str
    """SHA-256 of the file; the same content has the same id, and comes in once."""
    inbox: str
    file: str
    """Name within the inbox."""
    bytes: int
    version: int | None
    """Of the Share model that it was trained in; None: plain factors."""


def submit(
    source: str | os.PathLike[str],
    inbox: str | os.PathLike[str],
    *,
    task: str | None = None,
    plain: bool = False,
    pull_request: bool = False,
) -> Submission:
    """Hand an adapter in.

    Args:
        source: its directory, as ``save_pretrained`` writes it; see ``read_contribution``.
        inbox: a folder (made where it is missing), ``hf://user/repo/folder``, or another URL such
            as ``s3://bucket/inbox``.
        task: its name; None: that of the ``ShareConfig``, or the folder's.
        plain: carry whole factors instead of coefficients in the bases of a version.
        pull_request: on the Hub: propose it to the repository's owner.

    Raises:
        AdapterError: the adapter cannot be read.
        ContributionError: it cannot be merged: NaN, a name like a path.
        InboxError: the inbox cannot be written.
    """
    found = read_contribution(source, task=task, plain=plain)
    return hand_in(found, inbox, pull_request=pull_request)


def hand_in(
    found: Contribution, inbox: str | os.PathLike[str], *, pull_request: bool = False
) -> Submission:
    """Put a contribution into an inbox; see ``submit``."""
    name, data = encode(found)
    place = open_inbox(inbox, create=True, pull_request=pull_request)
    place.write(name, data)
    match = NAME.fullmatch(name)
    id = match["sha256"] if match else ""
    version = found.basis.version if found.basis else None
    return Submission(found.task, id, place.where, name, len(data), version)
