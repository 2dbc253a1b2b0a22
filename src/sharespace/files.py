# ruff: noqa: PTH102, PTH105, PTH108 - pathlib hides which calls of the system are made
"""Files and directories that appear whole or not at all, and the one reader for small files.

Every change of the disk that must survive a crash is made in this file, each step as one call of
``os`` or ``fcntl``, so that a test can count the steps and kill the process at any of them. A file
or a directory is written under a hidden name, synced, renamed, and then the directory that holds
its name is synced (docs/format.md, "Writing"). Without the first sync a power loss may leave the
name with empty contents, without the second it may leave the contents without the name.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import torch

from sharespace.errors import OptionError, SharespaceError, StoreError, StoreLockedError

SAFETENSORS_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Name of a dtype in the header of a safetensors file -> torch's dtype."""

FileBlocks: TypeAlias = Iterable[bytes | memoryview]
"""The bytes of a file, in order, in pieces of any size."""

TEMPORARY = ".tmp-"
"""Prefix of what is being written; whoever holds the lock of its directory may remove it."""

EXPORT_MARK = ".sharespace-export"
"""File by which an earlier export is known, so that nothing else is ever replaced."""

STORE_HEAD, STORE_OBJECTS = "share.json", "objects"
"""What every Share model on disk has: its HEAD and its folder of tensor files."""

_MAX_MARK = 1 << 24
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_RENAME_SWAP = 2
_BLOCK = 1 << 20
_POLL_SECONDS = 0.05
_SYNC_THREADS = 16
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_SAFE = "the versions that were committed are as they were"


def write_files(directory: Path, files: Iterable[tuple[str, FileBlocks]]) -> None:
    """Write files so that each is visible under its name only when all of it is durable.

    All are written aside, then all are synced, then renamed in order, then the directory is
    synced, also where there was no file. The caller holds a lock on the directory: two writers of
    one name would share its hidden name.
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


def write_file(path: Path, data: bytes) -> None:
    """Write one file durably and whole, replacing what is there, outside of any lock.

    It is written under a hidden name that nothing else has, because another process may write the
    same file at the same time.

    Raises:
        OSError: the disk does not take it.
    """
    aside = _aside(path.parent, uuid.uuid4().hex)
    try:
        _write_aside(aside, [data])
        _sync_path(aside)
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):  # it is hidden, and no reader looks at it
            os.unlink(aside)
        raise
    sync_directory(path.parent)


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A directory to fill, which takes the name ``target`` when the block ends without an error.

    It is made beside ``target``, because only within one file system a rename is atomic. On an
    error it is removed, and ``target`` is as it was.

    Raises:
        OptionError: ``target`` is there and not empty, is a link or the current directory, lies
            in a Share model, or can't be made.
    """
    with _replacing(target, overwrite=False) as aside:
        yield aside


@contextmanager
def export_directory(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """As ``new_directory``, for an export: with ``overwrite`` an earlier export is replaced.

    An export carries a mark, the file ``.sharespace-export`` with the SHA-256 of all that was
    written. What has no mark, or holds anything else than its mark says, is never replaced.

    Raises:
        OptionError: as ``new_directory``; or there is no export at ``target`` to overwrite.
    """
    with _replacing(target, overwrite=overwrite) as aside:
        yield aside
        mark = json.dumps({"files": _hashes(aside)}, indent=1, sort_keys=True)
        (aside / EXPORT_MARK).write_text(mark + "\n", encoding="ascii")


@contextmanager
def _replacing(target: Path, *, overwrite: bool) -> Iterator[Path]:
    try:
        _refuse_target(target, overwrite)
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(target)
        with _directory_beside(target) as aside:
            yield aside
            _sync_all([aside, *aside.rglob("*")])
            _take_place(aside, target)
    except SharespaceError:
        raise
    except OSError as error:
        why = f"cannot be written ({error.strerror or error})"
        raise OptionError(str(target), why, "Check path, permissions and free space") from error


def _refuse_target(target: Path, overwrite: bool) -> None:
    """Refuse a path that no new directory may take.

    Raises:
        OptionError: it is one of those.
        OSError: it can't be looked at.
    """
    place = Path(os.path.realpath(target))
    if target.is_symlink():
        why = "a symbolic link, and a directory can't take the place of one"
        raise OptionError(str(target), why, f"Give the path that it leads to: {place}")
    if Path.cwd().is_relative_to(place):
        raise OptionError(
            str(target),
            "the current directory is it, or lies in it: a new one takes its place, and your "
            "shell would not see it",
            "Name a directory in it, or run this from elsewhere",
        )
    refuse_in_store(target)
    if not os.path.lexists(target):
        return
    if not stat.S_ISDIR(target.stat().st_mode):
        raise OptionError(str(target), "there is a file of that name", "Give another path")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise OptionError(
            str(target),
            "the directory is not empty",
            "Give another one; an earlier export can be overwritten (overwrite=True, --overwrite)",
        )
    if why := _no_export(target):
        remedy = "Give another directory, or move this one away yourself"
        raise OptionError(str(target), f"{why}; only an earlier export is overwritten", remedy)


def refuse_in_store(target: Path) -> None:
    """Refuse to write at a path that is, or lies in, a Share model.

    Raises:
        OptionError: it does.
    """
    named, real = target.absolute(), Path(os.path.realpath(target))
    for folder in dict.fromkeys([named, *named.parents, real, *real.parents]):
        if os.path.lexists(folder / STORE_HEAD) and (folder / STORE_OBJECTS).is_dir():
            why = f"{folder} is a Share model, and nothing else is written into it"
            raise OptionError(str(target), why, "Give a path outside of it")


def _no_export(folder: Path) -> str:
    """Why what is in a directory is not an export as it was written; empty where it is one."""
    mark = folder / EXPORT_MARK
    try:
        data = read_bytes(mark, _MAX_MARK, OSError)
        written = json.loads(data)["files"]
    except (FileNotFoundError, NotADirectoryError):
        return f"no export: it carries no mark ({EXPORT_MARK})"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"its mark ({EXPORT_MARK}) is damaged"
    present = _hashes(folder)
    for name in sorted(present):
        if name not in written:
            return f"{name!r} in it was not written by an export"
        if present[name] != written[name]:
            return f"{name!r} in it was changed since it was exported"
    return ""


def _hashes(folder: Path) -> dict[str, str]:
    """Path within the folder -> SHA-256 of the file, or what else it is; the mark is left out."""
    hashes: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            hashes[str(path.relative_to(folder))] = sha256_of(path)
        elif not stat.S_ISDIR(mode):
            hashes[str(path.relative_to(folder))] = "no regular file"
    hashes.pop(EXPORT_MARK, None)
    return hashes


@contextmanager
def _directory_beside(target: Path) -> Iterator[Path]:
    """A hidden directory beside ``target`` that is locked while it is filled, and then removed.

    The lock, which ends with the process, tells a directory that is being filled from one that a
    killed process left.
    """
    while True:
        # Not mkdtemp, whose directories only the owner can read; a server may be another user.
        aside = target.parent / f"{_leftover_prefix(target)}{uuid.uuid4().hex}"
        os.mkdir(aside)
        fd = os.open(aside, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Where the file system has no locks, nobody else can have one either: _clear_leftovers
            # then leaves everything alone.
            free = True
            with suppress(OSError):
                free = _lock_now(fd)
            if not (free and aside.is_dir()):
                continue  # Another export of the same path took it for a leftover.
            yield aside
            return
        finally:
            # After an exchange it is the old directory that has this name.
            shutil.rmtree(aside, ignore_errors=True)
            os.close(fd)


def _clear_leftovers(target: Path) -> None:
    """Remove what killed writers of this target left beside it."""
    prefix = _leftover_prefix(target)
    for name in names_in(target.parent):
        if not name.startswith(prefix):
            continue
        folder = target.parent / name
        with suppress(OSError):  # gone, because somebody else cleared it, or no locks here
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _lock_now(fd):
                    shutil.rmtree(folder)
            finally:
                os.close(fd)


def _lock_now(fd: int) -> bool:
    """Lock an open file or directory; False where another process has it locked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _leftover_prefix(target: Path) -> str:
    # Of this target only: where directories can't be exchanged, a killed overwrite may have left
    # the only copy of another one under such a name. Hashed, because a name has at most 255 bytes.
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]
    return f"{TEMPORARY}{digest}-"


def _take_place(aside: Path, target: Path) -> None:
    """Give a new directory its name; what was there before has the hidden name then.

    With an exchange the name is the old or the new directory's at every instant. Where the system
    has none, the old one steps aside first: killed between these two renames, ``target`` is gone
    and both are beside it under hidden names, until the next export to ``target`` clears them.
    """
    if not (os.path.lexists(target) and any(target.iterdir())):
        os.replace(aside, target)  # One rename also replaces an empty directory.
    elif not exchange(aside, target):
        old = target.parent / f"{_leftover_prefix(target)}{uuid.uuid4().hex}"
        os.replace(target, old)
        try:
            os.replace(aside, target)
        except OSError:
            os.replace(old, target)
            raise
        sync_directory(target.parent)
        shutil.rmtree(old)
    sync_directory(target.parent)


def exchange(first: Path, second: Path) -> bool:
    """Give each of two paths the other's name in one step; False where the system can't.

    Raises:
        OSError: it can, and refuses.
    """
    library = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(first), os.fsencode(second)
    arguments: tuple[object, ...]
    if sys.platform == "darwin":
        name, arguments = "renamex_np", (old, new, _RENAME_SWAP)
    else:
        name, arguments = "renameat2", (_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_EXCHANGE)
    call = getattr(library, name, None)
    if call is None:
        return False
    if call(*arguments) == 0:
        return True
    number = ctypes.get_errno()
    # What kernels and file systems say that have no exchange.
    if number in {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}:
        return False
    raise OSError(number, os.strerror(number), str(second))


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


def move_file(path: Path, target: Path) -> bool:
    """Rename a file durably within one file system; False where it is gone."""
    try:
        os.replace(path, target)
    except FileNotFoundError:
        return False
    # The new name first: after a power loss a file with both names is better than one with none.
    sync_directory(target.parent)
    sync_directory(path.parent)
    return True


def remove_files(directory: Path, names: Iterable[str]) -> None:
    """Remove files of a directory (one that is gone already is no error) and sync it."""
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(directory / name)
    sync_directory(directory)


def remove_temporary(directory: Path) -> None:
    """Remove what killed writers left half-written; only for the holder of the directory's lock."""
    stale = [name for name in names_in(directory) if name.startswith(TEMPORARY)]
    folders = [name for name in stale if (directory / name).is_dir()]
    for name in folders:
        shutil.rmtree(directory / name)
    if stale:
        remove_files(directory, set(stale) - set(folders))


def names_in(directory: Path) -> list[str]:
    """Names of what a directory holds; none where it is missing."""
    try:
        return os.listdir(directory)  # noqa: PTH208
    except FileNotFoundError:
        return []


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sync(fd)
    finally:
        os.close(fd)


def _aside(directory: Path, name: str) -> Path:
    return directory / f"{TEMPORARY}{name}"


def _write_aside(path: Path, blocks: FileBlocks) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for block in _coalesced(blocks):
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(fd, rest) :]
    finally:
        os.close(fd)


def _coalesced(blocks: FileBlocks) -> Iterator[bytes | memoryview]:
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
    # All at once: a disk takes many syncs in the time of one.
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


def read_bytes(path: Path, limit: int, corrupt: Callable[[str], Exception]) -> bytes:
    """A regular file's bytes.

    Args:
        path: the file.
        limit: the most bytes that it may have.
        corrupt: makes the error, from the reason, for what is no such file.

    Raises:
        OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not block
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise corrupt("not a regular file")
        if info.st_size > limit:
            raise corrupt(f"{info.st_size} bytes, more than the {limit} it may have")
        return file.read()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal; one block is in memory at a time.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


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


@contextmanager
def lock(path: Path, timeout: float = 0.0) -> Iterator[None]:
    """Hold the lock file exclusively; the kernel drops it when the process ends in any way.

    Args:
        path: the lock file; created where it is missing, never removed, because another process
            may have opened it already and would then hold a lock on a file without a name.
        timeout: seconds to wait for another holder; 0 does not wait.

    Raises:
        StoreLockedError: another process (or thread) holds it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        _acquire(fd, path, timeout)
        # Who holds it is told as a courtesy: on a full disk the lock must still be had, or nothing
        # could free space there.
        with suppress(OSError):
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
                remedy = "Wait until it ends and try again, or give a timeout"
                raise StoreLockedError(str(path.parent), _holder(fd), remedy) from None
        time.sleep(_POLL_SECONDS)


def _holder(fd: int) -> str:
    text = os.pread(fd, 200, 0).decode("utf-8", "replace").strip()
    return f"another writer holds the lock: {text if text.isprintable() and text else 'unknown'}"
