"""An inbox in an object store, or wherever else fsspec reaches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sharespace.errors import InboxError, MissingExtraError, SharespaceError
from sharespace.extras import require
from sharespace.gather.inbox import SUFFIX, Entry, inbox_error


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
