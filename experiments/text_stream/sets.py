"""Text sets on disk: folders with ``train`` and ``test`` as JSON lines, and ``labels.txt``."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path

from sharespace.errors import OptionError


@dataclass(frozen=True)
class TextSet:
    """One split of one set."""

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    """Second texts, where examples are pairs."""
    labels: tuple[int, ...]


def label_count(folder: Path) -> int:
    """Classes of a set."""
    return len((folder / "labels.txt").read_text(encoding="utf-8").splitlines())


def read(folder: Path, split: str, limit: int | None, seed: int) -> TextSet:
    """A split, at most ``limit`` examples of it, drawn with the seed.

    Raises:
        OptionError: there is no such set.
    """
    file = folder / f"{split}.jsonl.gz"
    if not file.is_file():
        raise OptionError(f"set {folder.name!r}", f"{file} is not there", "Check --data")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    if limit is not None and len(rows) > limit:
        rows = random.Random(seed).sample(rows, limit)
    second = tuple(r["text2"] for r in rows) if rows and "text2" in rows[0] else None
    return TextSet(tuple(r["text"] for r in rows), second, tuple(int(r["label"]) for r in rows))
