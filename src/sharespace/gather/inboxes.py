"""Where contributions are handed in: a folder, a prefix in an object store, or a folder on the Hub.

``Inbox`` says what gathering needs of a place; each of the three classes is one kind of place.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from sharespace.errors import (
    ContributionError,
    InboxError,
    MissingExtraError,
    OptionError,
    SharespaceError,
)
from sharespace.extras import require
from sharespace.files import (
    STORE_HEAD,
    make_directory,
    move_file,
    read_bytes,
    refuse_in_store,
    write_file,
)

MERGED, QUARANTINE = "merged", "quarantine"
"""Folders within an inbox."""

MAX_BYTES = 1 << 30
"""Most bytes of one contribution. It is read into memory whole, because its hash is checked before
anything in it is believed."""

SUFFIX = ".safetensors"

_HUB = "hf://"
_OF_ONE_FILE = frozenset(
    (*(errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR), errno.ENXIO, errno.ENODEV, errno.EIO)
)
"""Errors of the system that say something of a file, and not of the folder or the machine."""

_PRECONDITION_FAILED = 412
_REMEDY = "Check path, permissions and connection; nothing was lost, so run it again"


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
    if text.startswith(_HUB):
        return HubInbox(text, pull_request=pull_request)
    if pull_request:
        raise OptionError(
            f"inbox {text}", "only the Hub has pull requests", "hf://USER/REPO/FOLDER"
        )
    if "://" in text and not text.startswith("file://"):
        return RemoteInbox(text)
    folder = Path(text.removeprefix("file://")).absolute()
    # Its tensor files end in .safetensors, too: they would be moved away as bad contributions.
    refuse_in_store(folder)
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
    if Path(inbox.where) == place.absolute() or (Path(inbox.where) / STORE_HEAD).exists():
        raise OptionError(
            f"inbox {inbox.where}", "it is a Share model", "Give the folder of contributions"
        )


@dataclass(frozen=True)
class InboxFile:
    """A file that lies in an inbox."""

    name: str
    size: int
    """Number of bytes."""


class Inbox(Protocol):
    """All that gathering needs of a place; other places implement these four methods."""

    @property
    def where(self) -> str:
        """Path or URL, for messages."""
        ...

    def entries(self) -> list[InboxFile]:
        """Files directly in the inbox that end in ``.safetensors`` and are not hidden.

        Raises:
            InboxError: it cannot be listed.
        """
        ...

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None where it is gone (another gatherer was faster).

        Args:
            name: file name, as ``entries`` gives it.

        Raises:
            InboxError: it cannot be read.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, whole or not at all; one of the same name is replaced.

        Args:
            name: file name, or ``<folder>/<file name>`` with a folder of the inbox.
            data: all of its bytes.

        Raises:
            InboxError: it cannot be written.
        """
        ...

    def move(self, name: str, to: str) -> bool:
        """Give a file another name, such as ``merged/<name>``; False where it is gone.

        It may be a copy and then a deletion: killed in between, both are there.

        Args:
            name: file name, as ``entries`` gives it.
            to: ``<folder>/<file name>`` with a folder of the inbox.

        Raises:
            InboxError: it cannot be moved.
        """
        ...


class LocalInbox:
    """A folder; see ``Inbox``. A file appears by a rename, and moves by a rename."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def where(self) -> str:
        return str(self._folder)

    def entries(self) -> list[InboxFile]:
        with _folder_errors(self._folder, "listing"):
            paths = sorted(p for p in self._folder.iterdir() if _is_contribution(p.name))
            return [entry for path in paths if (entry := _inbox_file(path))]

    def read(self, name: str) -> bytes | None:
        def refused(why: str) -> ContributionError:
            return ContributionError(name, why, "Hand in a file that the gatherer may read")

        with _folder_errors(self._folder / name, "reading"):
            try:
                return read_bytes(self._folder / name, MAX_BYTES, refused)
            except FileNotFoundError:
                # Where a link leads nowhere, the link is there all the same.
                if (self._folder / name).is_symlink():
                    raise refused("a symbolic link to nothing") from None
                return None
            except OSError as error:
                if error.errno in _OF_ONE_FILE:
                    raise refused(f"it cannot be read: {error.strerror}") from error
                raise

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


def _inbox_file(path: Path) -> InboxFile | None:
    """None where it is gone because another gatherer moved it."""
    try:
        # lstat: a link is judged, and later moved away, as the link that it is.
        info = path.lstat()
    except FileNotFoundError:
        return None
    # A folder is listed with the others: reading says that it is none, and it is set aside.
    return InboxFile(path.name, info.st_size if stat.S_ISREG(info.st_mode) else 0)


@contextmanager
def _folder_errors(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except SharespaceError:
        raise
    except OSError as error:
        raise _inbox_error(str(path), doing, error) from error


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

    def entries(self) -> list[InboxFile]:
        with _remote_errors(self.where, "listing"):
            # fsspec remembers listings, and would never see what others hand in.
            self._fs.invalidate_cache()
            try:
                infos: list[dict[str, Any]] = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                self._check_bucket()
                return []  # Object stores have no folders: a prefix without objects is empty.
            return _sorted_files(
                {x["name"]: int(x["size"] or 0) for x in infos if x["type"] == "file"}
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
            # Copied first: killed in between there are two files, and the recorded ids make the
            # second of them harmless. Deleted first, the contribution would be lost.
            try:
                self._fs.rm_file(self._at(name))
            except FileNotFoundError:
                return False  # Another gatherer moved it meanwhile, to the same place.
            return True

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


@contextmanager
def _remote_errors(where: str, doing: str) -> Iterator[None]:
    """Any error of a file system as an InboxError: they raise what their libraries raise."""
    try:
        yield
    except (SharespaceError, ImportError):
        raise
    except Exception as error:
        raise _inbox_error(where, doing, error) from error


class HubInbox:
    """``hf://user/repo/folder`` of a model repository; see ``Inbox``.

    With ``pull_request`` what is handed in becomes a pull request each; ``gather`` sees it when the
    repository's owner has merged that. A move is one commit: both names change, or none.
    """

    def __init__(self, url: str, *, pull_request: bool = False, api: HfApi | None = None) -> None:
        parts = url.removeprefix(_HUB).strip("/").split("/")
        if len(parts) < 3 or not all(parts):
            raise OptionError(f"inbox {url}", "not hf://USER/REPO/FOLDER", "Name all three")
        self.where = url
        self._repo, self._folder = "/".join(parts[:2]), "/".join(parts[2:])
        self._pull_request = pull_request
        self._api: Any = api or HfApi()

    def entries(self) -> list[InboxFile]:
        with hub_errors(self.where, "listing"):
            try:
                paths = list(self._api.list_repo_tree(self._repo, self._folder))
            except EntryNotFoundError:
                return []  # Git has no empty folders.
            # Folders are listed as well; they have no size.
            return _sorted_files({x.path: x.size for x in paths if hasattr(x, "size")})

    def read(self, name: str) -> bytes | None:
        with hub_errors(self.where, "reading"):
            return self._bytes(name, None)

    def _bytes(self, name: str, revision: str | None) -> bytes | None:
        try:
            path = self._api.hf_hub_download(self._repo, self._at(name), revision=revision)
        except EntryNotFoundError:
            return None
        return Path(path).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        with hub_errors(self.where, "writing"):
            self._api.create_commit(
                self._repo,
                [CommitOperationAdd(self._at(name), data)],
                commit_message=f"Add {name[:40]}",
                create_pr=self._pull_request,
            )

    def move(self, name: str, to: str) -> bool:
        with hub_errors(self.where, "moving"):
            # The commit that is changed is named, so that of two gatherers the Hub refuses one.
            head = self._api.repo_info(self._repo).sha
            data = self._bytes(name, head)
            if data is None:
                return False
            self._api.create_commit(
                self._repo,
                [
                    CommitOperationAdd(self._at(to), data),
                    CommitOperationDelete(self._at(name)),
                ],
                commit_message=f"Move {name[:40]} to {to.partition('/')[0]}",
                parent_commit=head,
            )
            return True

    def _at(self, name: str) -> str:
        return f"{self._folder}/{name}"


@contextmanager
def hub_errors(where: str, doing: str) -> Iterator[None]:
    """Any error of the Hub as an InboxError.

    Args:
        where: repository or URL, for the message.
        doing: what was tried, for the message.
    """
    try:
        yield
    except SharespaceError:
        raise
    except HfHubHTTPError as error:
        response = getattr(error, "response", None)
        if getattr(response, "status_code", None) == _PRECONDITION_FAILED:
            why = f"{doing}: somebody else committed meanwhile"
            raise InboxError(where, why, "Run it again; nothing was lost") from error
        raise _inbox_error(where, doing, error) from error
    except (HFValidationError, OSError) as error:
        raise _inbox_error(where, doing, error) from error


def _is_contribution(name: str) -> bool:
    # A name that begins with a dot is still being written, here and in docs/howto/gather.md.
    return name.endswith(SUFFIX) and not name.startswith(".")


def _sorted_files(sizes: dict[str, int]) -> list[InboxFile]:
    """The contributions among files (path -> size), by name as a folder lists them."""
    named = {path.rpartition("/")[2]: size for path, size in sizes.items()}
    return [InboxFile(name, named[name]) for name in sorted(named) if _is_contribution(name)]


def _inbox_error(where: str, doing: str, error: BaseException) -> InboxError:
    """The error for a place that does not answer as it should."""
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    # One line: errors of botocore and of the Hub hold whole answers of the server.
    return InboxError(where, f"{doing} failed: {reason.splitlines()[0][:300]}", _REMEDY)
