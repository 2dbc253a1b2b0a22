# ruff: noqa: PTH102, PTH105, PTH108 - pathlib hides which calls of the system are made
"""File system primitives: every change that a store makes to the disk is made in this file.

Each step is one call of ``os`` or ``fcntl``, so that a test can count the steps and kill the
process at each of them. A file becomes visible only whole: it is written aside, synced, renamed,
and then its directory is synced (docs/format.md, "Writing").
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from sharespace.errors import SharespaceError, StoreError, StoreLockedError
from sharespace.store.fields import corrupt

Blocks: TypeAlias = Iterable[bytes | memoryview]

TEMPORARY = ".tmp-"
"""Prefix of files that are being written; whoever holds the lock may remove them."""

_BLOCK = 1 << 20
_POLL_SECONDS = 0.05
_SYNC_THREADS = 16
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SAFE = "the versions that were committed are as they were"
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def disk_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn what the operating system refuses into a StoreError with a remedy.

    Raises:
        StoreError: any OSError of the body that sharespace did not raise itself.
    """
    try:
        yield
    except SharespaceError:
        raise
    except OSError as error:
        why = f"{doing} failed: {error.strerror or error} ({error.filename or path})"
        raise StoreError(str(path), why, _remedy(error)) from error


def _remedy(error: OSError) -> str:
    if error.errno in _NO_ROOM:
        return f"Free some space there and run it again; {_SAFE}"
    if error.errno in _NOT_ALLOWED:
        return f"Check the permissions of that path; {_SAFE}"
    return f"Nothing was damaged: {_SAFE}"


def make_directory(path: Path) -> None:
    """Create a directory and its parents, each made durable; one that exists is left alone."""
    if path.is_dir():
        return
    make_directory(path.parent)
    with suppress(FileExistsError):  # another process was faster
        os.mkdir(path)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    sync_directory(path.parent)


def write_files(directory: Path, files: Iterable[tuple[str, Blocks]]) -> None:
    """Write files so that each is visible under its name only when all of it is durable.

    All are written aside, then all are synced (at once: a disk takes many syncs in the time of
    one), then renamed in order, then the directory is synced, also where there was no file.
    """
    names: list[str] = []
    try:
        for name, blocks in files:
            names.append(name)
            _write_aside(_aside(directory, name), blocks)
        _sync_all([_aside(directory, name) for name in names])
        for name in names:
            os.replace(_aside(directory, name), directory / name)
    except BaseException:
        for name in names:
            with suppress(OSError):  # what stays is cleared by the next writer
                os.unlink(_aside(directory, name))
        raise
    sync_directory(directory)


def write_whole(path: Path, data: bytes) -> None:
    """Write one file durably and whole, replacing what is there, outside of any lock.

    It is written aside under a name of its own, because another process may write the same file.
    """
    aside = uuid.uuid4().hex
    try:
        _write_aside(_aside(path.parent, aside), [data])
        _sync_path(_aside(path.parent, aside))
        os.replace(_aside(path.parent, aside), path)
    except BaseException:
        with suppress(OSError):  # it is hidden, and no reader looks at it
            os.unlink(_aside(path.parent, aside))
        raise
    sync_directory(path.parent)


def move_file(path: Path, target: Path) -> bool:
    """Rename a file durably within one file system; False where it is gone."""
    try:
        os.replace(path, target)
    except FileNotFoundError:
        return False
    sync_directory(target.parent)
    sync_directory(path.parent)
    return True


def _aside(directory: Path, name: str) -> Path:
    return directory / f"{TEMPORARY}{name}"


def _write_aside(path: Path, blocks: Blocks) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for block in _coalesced(blocks):
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(fd, rest) :]
    finally:
        os.close(fd)


def _coalesced(blocks: Blocks) -> Iterator[bytes | memoryview]:
    """The same bytes in fewer blocks: small ones joined, large ones as they are."""
    joined = bytearray()
    for block in blocks:
        if len(block) >= _BLOCK and joined:
            yield bytes(joined)
            joined.clear()
        if len(block) >= _BLOCK:
            yield block
            continue
        joined += block
        if len(joined) >= _BLOCK:
            yield bytes(joined)
            joined.clear()
    if joined:
        yield bytes(joined)


def _sync_all(paths: list[Path]) -> None:
    if len(paths) < 2:
        for path in paths:
            _sync_path(path)
        return
    with ThreadPoolExecutor(min(_SYNC_THREADS, len(paths))) as pool:
        for _ in pool.map(_sync_path, paths):
            pass


def _sync_path(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        _sync(fd)
    finally:
        os.close(fd)


def _sync(fd: int) -> None:
    # On macOS fsync leaves the data in the drive's cache; F_FULLFSYNC does not.
    full: int | None = getattr(fcntl, "F_FULLFSYNC", None)
    if full is None:
        os.fsync(fd)
    else:
        fcntl.fcntl(fd, full)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sync(fd)
    finally:
        os.close(fd)


def remove_files(directory: Path, names: Iterable[str]) -> None:
    """Remove files of a directory (one that is gone already is no error) and sync it."""
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(directory / name)
    sync_directory(directory)


def read_bytes(path: Path, limit: int) -> bytes:
    """A regular file's bytes.

    Raises:
        OSError: it cannot be read.
        CorruptStoreError: it is not a regular file, or has more than ``limit`` bytes.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not block
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise corrupt(str(path), "not a regular file")
        if info.st_size > limit:
            raise corrupt(str(path), f"{info.st_size} bytes, more than the {limit} it may have")
        return file.read()


@contextmanager
def lock(path: Path, timeout: float = 0.0) -> Iterator[None]:
    """Hold the lock file exclusively; the kernel drops it when the process ends in any way.

    Args:
        path: the lock file; created where it is missing, never removed.
        timeout: seconds to wait for another holder; 0 does not wait.

    Raises:
        StoreLockedError: another process (or thread) holds it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        _acquire(fd, path, timeout)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        # Unlocked by name: a process forked meanwhile shares the lock and may outlive us.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _acquire(fd: int, path: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StoreLockedError(str(path.parent), _holder(fd), _LOCKED) from None
        time.sleep(_POLL_SECONDS)


_LOCKED = "Wait until it is done and try again, or give a timeout"


def _holder(fd: int) -> str:
    text = os.pread(fd, 200, 0).decode("utf-8", "replace").strip()
    return f"another writer holds the lock: {text if text.isprintable() and text else 'unknown'}"
