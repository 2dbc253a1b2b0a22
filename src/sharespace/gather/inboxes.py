"""Where contributions are handed in: a folder, or a prefix in an object store.

An inbox that is a folder.

An inbox in an object store, or wherever else fsspec reaches.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sharespace.errors import (
    ContributionError,
    InboxError,
    MissingExtraError,
    OptionError,
    SharespaceError,
)
from sharespace.extras import require
from sharespace.files import make_directory, move_file, read_bytes, write_file

MERGED, QUARANTINE = "merged", "quarantine"
"""Folders within an inbox."""

MAX_BYTES = 1 << 30
"""Of one contribution; it is read into memory."""

SUFFIX = ".safetensors"

_REMEDY = "Check path, permissions and connection; nothing was lost, so run it again"


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
        from sharespace.gather.hub_store import HubInbox

        return HubInbox(text, pull_request=pull_request)
    if pull_request:
        raise OptionError(
            f"inbox {text}", "only the Hub has pull requests", "hf://USER/REPO/FOLDER"
        )
    if "://" in text and not text.startswith("file://"):
        return RemoteInbox(text)

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


class LocalInbox:
    """A folder; see ``Inbox``. A file appears by a rename, and moves by one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def where(self) -> str:
        return str(self._folder)

    def entries(self) -> list[Entry]:
        with _folder_errors(self._folder, "listing"):
            paths = sorted(p for p in self._folder.iterdir() if _is_shown(p.name))
            return [entry for path in paths if (entry := _entry(path))]

    def read(self, name: str) -> bytes | None:
        with _folder_errors(self._folder / name, "reading"):
            try:
                return read_bytes(
                    self._folder / name,
                    MAX_BYTES,
                    lambda why: ContributionError(name, why, "Hand in a file"),
                )
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        path = self._folder / name
        with _folder_errors(path, "writing"):
            make_directory(path.parent)
            write_file(path, data)

    def move(self, name: str, to: str) -> bool:
        target = self._folder / to
        with _folder_errors(self._folder / name, "moving"):
            make_directory(target.parent)
            return move_file(self._folder / name, target)


def _is_shown(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".")


def _entry(path: Path) -> Entry | None:
    """None where it is no file, or gone: another gatherer moved it."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    return None if stat.S_ISDIR(info.st_mode) else Entry(path.name, info.st_size)


@contextmanager
def _folder_errors(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except SharespaceError:
        raise
    except OSError as error:
        raise inbox_error(str(path), doing, error) from error


class RemoteInbox:
    """A URL such as ``s3://bucket/inbox``; see ``Inbox``.

    An object store shows an object only when all of it is there. It cannot rename: a move is a copy
    and then a deletion. Credentials are found as fsspec's file system for the URL finds them.
    """

    def __init__(self, url: str) -> None:
        fsspec = require("fsspec", "remote")
        self.where = url.rstrip("/")
        try:
            with _remote_errors(url, "opening"):
                self._fs, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            remedy = "pip install 'sharespace[remote]'"
            raise MissingExtraError(f"inbox {url}", str(error), remedy) from error
        self._root = root.rstrip("/")

    def entries(self) -> list[Entry]:
        with _remote_errors(self.where, "listing"):
            self._fs.invalidate_cache()
            try:
                found: list[dict[str, Any]] = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                self._check_bucket()
                return []  # a prefix without objects
            entries = [(x["name"].rpartition("/")[2], x) for x in found if x["type"] == "file"]
            return sorted(
                (
                    Entry(name, int(x["size"] or 0))
                    for name, x in entries
                    if name.endswith(SUFFIX) and not name.startswith(".")
                ),
                key=lambda entry: entry.name,
            )

    def _check_bucket(self) -> None:
        """A prefix without objects is an empty inbox; a bucket that is not there is a mistake."""
        bucket = self._root.lstrip("/").partition("/")[0]
        if not self._fs.exists(bucket):
            raise InboxError(self.where, f"there is no {bucket!r}", "Check the URL")

    def read(self, name: str) -> bytes | None:
        with _remote_errors(self._at(name), "reading"):
            try:
                data: bytes = self._fs.cat_file(self._at(name))
            except FileNotFoundError:
                return None
            return data

    def write(self, name: str, data: bytes) -> None:
        with _remote_errors(self._at(name), "writing"):
            self._fs.pipe_file(self._at(name), data)

    def move(self, name: str, to: str) -> bool:
        with _remote_errors(self._at(name), "moving"):
            try:
                self._fs.cp_file(self._at(name), self._at(to))
            except FileNotFoundError:
                return False
            try:
                self._fs.rm_file(self._at(name))
            except FileNotFoundError:
                return False  # another gatherer moved it meanwhile, to the same place
            return True

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


@contextmanager
def _remote_errors(where: str, doing: str) -> Iterator[None]:
    """File systems of fsspec raise what their libraries raise, of any class."""
    try:
        yield
    except (SharespaceError, ImportError):
        raise
    except Exception as error:
        raise inbox_error(where, doing, error) from error
