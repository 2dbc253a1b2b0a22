"""Texts of the shared sets, in lower case and cut short, as everything here uses them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

from experiments.text_stream.sets import read

_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
LONGEST = 18
"""Words of a text that are kept."""


@dataclass(frozen=True)
class Labelled:
    """One split of one set."""

    texts: tuple[str, ...]
    """Lower-case words, separated by single spaces."""
    labels: tuple[int, ...]
    names: tuple[str, ...]
    """Of the classes, as plain words."""

    def of_class(self, label: int) -> tuple[str, ...]:
        """Texts of one class, in their order."""
        pairs = zip(self.texts, self.labels, strict=True)
        return tuple(text for text, mine in pairs if mine == label)


@cache
def load(data: Path, name: str, split: str) -> Labelled:
    """A whole split.

    Args:
        data: folder with one folder a set.

    Raises:
        OptionError: there is no such set.
    """
    split_set = read(data / name, split, None, seed=0)
    lines = (data / name / "labels.txt").read_text(encoding="utf-8").splitlines()
    names = tuple(plain(line.replace("_", " ")) for line in lines)
    return Labelled(tuple(plain(text) for text in split_set.texts), split_set.labels, names)


def plain(text: str) -> str:
    """The first words, without punctuation."""
    words = islice(_WORD.finditer(text.lower()), LONGEST)
    return " ".join(match[0] for match in words)
