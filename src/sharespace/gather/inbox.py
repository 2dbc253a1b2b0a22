"""Where contributions are handed in: a folder, or a prefix in an object store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sharespace.errors import InboxError, OptionError

MERGED, QUARANTINE = "merged", "quarantine"
"""Folders within an inbox."""

MAX_BYTES = 1 << 30
"""Of one contribution; it is read into memory."""

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Entry:
    """A file that lies in an inbox."""

    name: str
    size: int


class Inbox(Protocol):
    """All that gathering needs of a place; other places implement these four."""

    @property
    def where(self) -> str:
        """For messages."""
        ...

    def entries(self) -> list[Entry]:
        """Files directly in the inbox that end in ``.safetensors`` and are not hidden.

        Raises:
            InboxError: it cannot be listed.
        """
        ...

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None where it is gone (another gatherer was faster).

        Raises:
            InboxError: it cannot be read.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, whole or not at all; one of the same name is replaced.

        Args:
            name: a file name, or ``<folder>/<file name>`` with a folder of the inbox.

        Raises:
            InboxError: it cannot be written.
        """
        ...

    def move(self, name: str, to: str) -> bool:
        """Give a file another name, such as ``merged/<name>``; False where it is gone.

        It may be a copy and then a deletion: killed in between, both are there.

        Raises:
            InboxError: it cannot be moved.
        """
        ...


def open_inbox(
    place: str | os.PathLike[str], *, create: bool = False, pull_request: bool = False
) -> Inbox:
    """The inbox at a path or a URL.

    Args:
        place: a folder, ``hf://user/repo/folder``, or another URL that fsspec knows, such as
            ``s3://bucket/inbox``.
        create: make the folder where it is missing; object stores have no folders.
        pull_request: hand in by pull requests; on the Hub only.

    Raises:
        OptionError: there is no such folder.
        MissingExtraError: what the URL needs is not installed.
        InboxError: the folder cannot be made, or the place not reached.
    """
    text = os.fspath(place)
    if text.startswith("hf://"):
        from sharespace.gather.hub import HubInbox

        return HubInbox(text, pull_request=pull_request)
    if pull_request:
        raise OptionError(
            f"inbox {text}", "only the Hub has pull requests", "hf://USER/REPO/FOLDER"
        )
    if "://" in text and not text.startswith("file://"):
        from sharespace.gather.remote import RemoteInbox

        return RemoteInbox(text)
    from sharespace.gather.local import LocalInbox

    folder = Path(text.removeprefix("file://")).absolute()
    if not create and not folder.is_dir():
        raise OptionError(
            f"inbox {text}", "there is no such folder", "Check the path; submit makes the folder"
        )
    return LocalInbox(folder)


def refuse_store(inbox: Inbox, place: Path) -> None:
    """An inbox must not be the store itself.

    Raises:
        OptionError: it is.
    """
    if Path(inbox.where) == place.absolute() or (Path(inbox.where) / "share.json").exists():
        raise OptionError(
            f"inbox {inbox.where}", "it is a Share model", "Give the folder of contributions"
        )


def inbox_error(where: str, doing: str, error: BaseException) -> InboxError:
    """The error for a place that does not answer as it should."""
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return InboxError(where, f"{doing} failed: {reason.splitlines()[0][:300]}", _REMEDY)


_REMEDY = "Check path, permissions and connection; nothing was lost, so run it again"
