"""An inbox that is a folder."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sharespace.errors import ContributionError, CorruptStoreError, SharespaceError
from sharespace.gather.inbox import MAX_BYTES, SUFFIX, Entry, inbox_error
from sharespace.store import atomic


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
                return atomic.read_bytes(self._folder / name, MAX_BYTES)
            except FileNotFoundError:
                return None
            except CorruptStoreError as error:
                raise ContributionError(name, error.why, "Hand in a file") from error

    def write(self, name: str, data: bytes) -> None:
        path = self._folder / name
        with _folder_errors(path, "writing"):
            atomic.make_directory(path.parent)
            atomic.write_whole(path, data)

    def move(self, name: str, to: str) -> bool:
        target = self._folder / to
        with _folder_errors(self._folder / name, "moving"):
            atomic.make_directory(target.parent)
            return atomic.move_file(self._folder / name, target)


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
