"""A disk that loses what was not synced: replays recorded steps and says what may be left."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

DIRECTORY = -1

Names = dict[Path, int]


class Disk:
    """Names and contents as a program sees them, and as they would be after a power loss."""

    def __init__(self, root: Path) -> None:
        """Everything that is at ``root`` now is durable."""
        self._names: Names = {}
        self._now: dict[int, bytes] = {}
        for path in [root, *root.rglob("*")] if root.exists() else []:
            self._names[path] = DIRECTORY if path.is_dir() else len(self._names)
            if path.is_file():
                self._now[self._names[path]] = path.read_bytes()
        self._synced, self._synced_names = dict(self._now), dict(self._names)
        self._pending: list[tuple[Path, Path, int | None]] = []
        self._files: dict[int, Path] = {}
        self._next = len(self._names)

    def step(self, name: str, *args: Any) -> None:
        """One recorded step; those that change nothing durable are passed over."""
        if name in ("open", "write", "mkdir", "unlink", "replace", "fsync"):
            getattr(self, f"_{name}")(*args)

    def _enter(self, path: Path, inode: int | None) -> None:
        if inode is None:
            self._names.pop(path)
        else:
            self._names[path] = inode
        self._pending.append((path.parent, path, inode))

    def _open(self, fd: int, path: Path, flags: int, *_: int) -> None:
        if path not in self._names and flags & os.O_CREAT:
            self._next += 1
            self._now[self._next] = b""
            self._enter(path, self._next)
        self._files[fd] = path

    def _write(self, fd: int, data: bytes) -> None:
        self._now[self._names[self._files[fd]]] += data

    def _mkdir(self, path: Path) -> None:
        self._enter(path, DIRECTORY)

    def _unlink(self, path: Path) -> None:
        self._enter(path, None)

    def _replace(self, old: Path, new: Path) -> None:
        self._enter(new, self._names[old])
        self._enter(old, None)

    def _fsync(self, fd: int) -> None:
        path = self._files[fd]
        inode = self._names.get(path)
        if inode is not None and inode != DIRECTORY:
            self._synced[inode] = self._now[inode]
            return
        done = [p for p in self._pending if p[0] == path]
        self._pending = [p for p in self._pending if p[0] != path]
        self._synced_names = _with(self._synced_names, done)

    def after_power_loss(self) -> Iterator[dict[Path, bytes | None]]:
        """What may be found: path -> bytes, None for a directory.

        Contents are what was synced last. Of the names that were not synced: none, all, or only
        one of them reached the disk (a rename is two of them, which is worse than real disks).
        """
        lost: list[list[tuple[Path, Path, int | None]]] = [[], self._pending]
        for some in [*lost, *([one] for one in self._pending)]:
            names = _with(self._synced_names, some)
            yield {
                path: None if inode == DIRECTORY else self._synced.get(inode, b"")
                for path, inode in names.items()
            }


def _with(names: Names, changes: Iterable[tuple[Path, Path, int | None]]) -> Names:
    found = dict(names)
    for _, path, inode in changes:
        if inode is None:
            found.pop(path, None)
        else:
            found[path] = inode
    return found
