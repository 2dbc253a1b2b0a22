"""How an export is written, whatever its target."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ExportOptions:
    """The same for every target; what a target has no use for, it does not read."""

    rank: int | None = None
    """Pad all factors to this rank; None: the largest that a module needs."""
    dtype: torch.dtype | None = None
    """Of the factors; None: each as it is."""
    base: str | None = None
    """Folder or Hub id of the base model, for its ``config.json``; None: what the task states."""
    overwrite: bool = False
    """Replace a directory that has something in it."""
