"""Files of a run's folder: each appears whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sharespace.errors import CorruptStoreError
from sharespace.store import atomic

MOST_BYTES = 1 << 28
"""Of a record."""
ROUTER = "router.safetensors"
_HALF = (atomic.TEMPORARY, f".{ROUTER}-")
"""How the names of half-written files begin."""


def plain(task: str) -> str:
    """A task's name as part of a file's name."""
    return re.sub(r"[^\w.-]", "_", task)[:60]


def write_json(folder: Path, name: str, value: Mapping[str, Any]) -> None:
    """Write a record."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=True)
    atomic.write_files(folder, [(name, [text.encode()])])


def read_json(path: Path) -> Any:
    """Read a record.

    Raises:
        CorruptStoreError: it is not there, or no JSON.
    """
    try:
        return json.loads(read_whole(path, MOST_BYTES))
    except ValueError as error:
        why = f"no JSON ({error})"
        raise CorruptStoreError(str(path), why, "Bring it back as it was") from error


def read_whole(path: Path, most: int) -> bytes:
    """A file's bytes.

    Raises:
        CorruptStoreError: it is not there.
    """
    try:
        return atomic.read_bytes(path, most)
    except FileNotFoundError as error:
        raise CorruptStoreError(str(path), "missing", "Bring it back as it was") from error


def clear(folder: Path) -> None:
    """Half-written files and folders; only for the holder of the lock."""
    names = os.listdir(folder)  # noqa: PTH208
    files = [n for n in names if n.startswith(_HALF)]
    if files:
        atomic.remove_files(folder, files)
    for name in names:
        if name.startswith(".") and name not in files and (folder / name).is_dir():
            shutil.rmtree(folder / name)
