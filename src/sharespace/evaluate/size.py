"""Parameter and memory claims, counted two ways side by side (method.md, "Honest size").

*The paper's count*: coefficients that a task trains, nothing else. *Every byte*: bases,
coefficients, heads and what a file adds, in the stored dtype; LoRA's heads and files as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from sharespace.errors import OptionError
from sharespace.shapes import ModuleShape

Counted = Literal["paper", "bytes"]


@dataclass(frozen=True)
class Layout:
    """What every task of a family looks like, as Share and as LoRA.

    Raises OptionError where a number is not usable.
    """

    shapes: tuple[ModuleShape, ...]
    """Of the adapted modules."""
    k: int
    """Dimension of the subspaces a side; a module takes no more than its side has."""
    p: int
    """Pseudo-rank of the coefficients; at most k."""
    rank: int
    """r of the LoRA adapters to compare with."""
    itemsize: int = 4
    """Bytes of a stored number: 4 for float32."""
    head: int = 0
    """Numbers of a task's head, the same for both."""
    share_overhead: int = 0
    """Bytes that a task's file adds in Share: header, ledger, config."""
    lora_overhead: int = 0
    """Bytes that an adapter's files add: header, config."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", tuple(self.shapes))
        if not self.shapes:
            raise OptionError("shapes", "no adapted module", "Give at least one")
        for name in ("k", "p", "rank", "itemsize"):
            if getattr(self, name) < 1:
                raise OptionError(name, f"got {getattr(self, name)}", "Give at least 1")
        for name in ("head", "share_overhead", "lora_overhead"):
            if getattr(self, name) < 0:
                raise OptionError(name, f"got {getattr(self, name)}", "Give 0 or more")

    @property
    def basis(self) -> int:
        """Numbers in all bases: sum of k n + k d."""
        return sum(
            left * s.out_features + right * s.in_features
            for s, (left, right) in zip(self.shapes, self._dimensions, strict=True)
        )

    @property
    def trained(self) -> int:
        """Coefficients that a task trains: sum of 2 k p. The paper's count."""
        return sum((left + right) * min(self.p, left, right) for left, right in self._dimensions)

    @property
    def coefficients(self) -> int:
        """Numbers stored a task: sum of min(2 k p, k^2)."""
        return sum(
            min((left + right) * min(self.p, left, right), left * right)
            for left, right in self._dimensions
        )

    @property
    def lora(self) -> int:
        """Numbers of a LoRA adapter without its head: sum of r (n + d)."""
        return sum(self.rank * s.sides for s in self.shapes)

    @property
    def _dimensions(self) -> list[tuple[int, int]]:
        return [(min(self.k, s.out_features), min(self.k, s.in_features)) for s in self.shapes]


@dataclass(frozen=True)
class Size:
    """Both ways to keep a number of tasks, counted one way."""

    tasks: int
    lora: int
    """Bytes."""
    share: int
    """Bytes."""

    @property
    def ratio(self) -> float:
        """LoRA / Share: how many times smaller Share is."""
        return self.lora / self.share


def size(layout: Layout, tasks: int, counted: Counted) -> Size:
    """Bytes of T tasks.

    Args:
        layout: of every task.
        tasks: T, at least 1.
        counted: ``"paper"``: trained coefficients against LoRA's factors; ``"bytes"``: everything.

    Raises:
        OptionError: T is less than 1.
    """
    if tasks < 1:
        raise OptionError("tasks", f"got {tasks}", "Give at least 1")
    fixed, share, lora = _bytes(layout, counted)
    return Size(tasks, tasks * lora, fixed + tasks * share)


@dataclass(frozen=True)
class Claim:
    """What may be said of a number of tasks."""

    paper: Size
    """Coefficients only."""
    total: Size
    """Every byte."""


def claims(layout: Layout, tasks: Sequence[int] = (6, 100, 1000)) -> tuple[Claim, ...]:
    """Both counts for some numbers of tasks."""
    return tuple(Claim(size(layout, t, "paper"), size(layout, t, "bytes")) for t in tasks)


@dataclass(frozen=True)
class Reach:
    """From how many tasks on Share is so many times smaller."""

    ratio: float
    tasks: int | None
    """None: never."""
    limit: float
    """The ratio that many tasks come near to."""


def reach(layout: Layout, ratio: float, counted: Counted) -> Reach:
    """The smallest T with LoRA / Share >= ratio, for good.

    From T lora >= ratio (fixed + T share); in exact arithmetic.

    Raises:
        OptionError: the ratio is not a positive number.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise OptionError("ratio", f"got {ratio}", "Give a positive number, for example 100")
    fixed, share, lora = _bytes(layout, counted)
    gain = lora - Fraction(ratio) * share
    limit = lora / share
    if gain < 0 or (gain == 0 and fixed):
        return Reach(ratio, None, limit)
    return Reach(ratio, max(1, math.ceil(Fraction(ratio) * fixed / gain)) if gain else 1, limit)


def _bytes(layout: Layout, counted: Counted) -> tuple[int, int, int]:
    """Bytes of Share before any task, of a task in Share, and of a task as LoRA."""
    if counted == "paper":
        return 0, layout.trained * layout.itemsize, layout.lora * layout.itemsize
    return (
        layout.basis * layout.itemsize,
        (layout.coefficients + layout.head) * layout.itemsize + layout.share_overhead,
        (layout.lora + layout.head) * layout.itemsize + layout.lora_overhead,
    )


def bytes_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; a file with several links counts once.

    Raises:
        OptionError: there is nothing at the path.
    """
    if not path.exists():
        raise OptionError(f"path {path}", "nothing there", "Give a file or a folder")
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    found = {(s.st_dev, s.st_ino): s.st_size for s in (f.stat() for f in files)}
    return sum(found.values())
