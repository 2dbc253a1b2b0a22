"""Directories and files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sharespace.errors import OptionError


@contextmanager
def new_directory(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A directory to fill, which takes the name ``target`` when the block ends without an error.

    It is made beside ``target`` (one file system, so that the rename is atomic) and is synced
    before; on an error it is removed and ``target`` is as it was.

    Raises:
        OptionError: ``target`` is there, not empty, and is not to be overwritten; is the current
            directory; or can't be made.
    """
    _refuse_full(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = _beside(target)
        aside.mkdir()
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield aside
        _publish(aside, target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refuse_full(target: Path, overwrite: bool) -> None:
    if target.resolve() == Path.cwd():
        raise OptionError(
            str(target),
            "the current directory: a new one takes its place, and your shell would not see it",
            "Name a directory in it, or run this from elsewhere",
        )
    if target.is_dir():
        if any(target.iterdir()) and not overwrite:
            raise OptionError(
                str(target),
                "the directory is not empty",
                "Give another one, or overwrite it (overwrite=True, --overwrite)",
            )
    elif target.exists() or target.is_symlink():
        raise OptionError(str(target), "there is a file of that name", "Give another path")


def _beside(target: Path) -> Path:
    """A hidden name that nothing has; ``mkdir`` gives it the usual rights, unlike ``mkdtemp``."""
    return target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}")


def _publish(aside: Path, target: Path) -> None:
    for folder, _, files in os.walk(aside):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
    if target.exists() and any(target.iterdir()):
        _swap(aside, target)
    else:
        aside.rename(target)
    sync(target.parent)


def _swap(aside: Path, target: Path) -> None:
    """Two renames; what was there is deleted only when the new content is in its place."""
    old = _beside(target)
    target.rename(old)
    try:
        aside.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def sync(path: Path) -> None:
    """Flush a file or directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(target: Path, error: OSError) -> OptionError:
    return OptionError(str(target), f"cannot be written ({error.strerror or error})", "Check it")
