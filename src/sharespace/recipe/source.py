"""A path or a Hub id, as a recipe names it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?(@[\w./-]+)?")
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".safetensors", ".bin")


@dataclass(frozen=True)
class Source:
    """What is at a path, or else on the Hub; a relative path counts from the recipe's folder."""

    text: str
    """As written."""
    path: Path
    """Where it lies if it is local."""

    @classmethod
    def of(cls, text: str, folder: Path) -> Source:
        """
        Args:
            text: as written; ``~`` is the user's home folder.
            folder: the recipe's.
        """
        return cls(text, folder / os.path.expanduser(text))  # noqa: PTH111 (never raises)

    @property
    def is_local(self) -> bool:
        """There is something at the path, or the text cannot be a Hub id."""
        return os.path.lexists(self.path) or not self.may_be_hub

    @property
    def may_be_hub(self) -> bool:
        """The text has the form ``name``, ``user/name`` or ``user/name@revision``."""
        return bool(_HUB_ID.fullmatch(self.text)) and not self.text.lower().endswith(_SUFFIXES)

    def __str__(self) -> str:
        """What loaders take: the path where it is local, else the Hub id."""
        return str(self.path) if self.is_local else self.text
