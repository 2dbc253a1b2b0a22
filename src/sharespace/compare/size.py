"""Size claims, counted two ways side by side, and figures of them (docs/method.md, "Honest size").

*Coefficients only (as the paper counts)*: what a task trains, nothing else. *Every byte*: bases,
coefficients, heads and what a file adds, in the stored dtype; LoRA's heads and files as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sharespace.compare.figures import ADAPTERS, INK, PALE, SHARE, tidy
from sharespace.errors import OptionError
from sharespace.options import check_options, option
from sharespace.subspace.adapter import ModuleShape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CountedBy = Literal["paper", "bytes"]
"""``"paper"``: coefficients only (as the paper counts) against LoRA's factors; ``"bytes"``: every
byte of both."""


@dataclass(frozen=True)
class SizeLayout:
    """What every task looks like, as Share and as LoRA, where all tasks are alike.

    Raises:
        OptionError: there is no module, or a number is not usable.
    """

    shapes: tuple[ModuleShape, ...]
    """Shapes of the adapted modules."""
    k: int = option(least=1)
    """Dimension of the subspaces a side; a module takes no more than its side has."""
    p: int = option(least=1)
    """Pseudo-rank of the coefficients; at most k."""
    rank: int = option(least=1)
    """r of the LoRA adapters to compare with."""
    itemsize: int = option(4, least=1)
    """Bytes of a stored number: 4 for float32."""
    head: int = option(0, least=0)
    """Numbers of a task's head, the same for both."""
    share_overhead: int = option(0, least=0)
    """Bytes that a task's file adds in Share: header, ledger, config."""
    lora_overhead: int = option(0, least=0)
    """Bytes that an adapter's files add: header, config."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", tuple(self.shapes))
        if not self.shapes:
            raise OptionError("shapes", "no adapted module", "Give at least one")
        check_options(self)

    @property
    def basis(self) -> int:
        """Numbers in all bases: sum of k n + k d."""
        return sum(
            left * s.out_features + right * s.in_features
            for s, (left, right) in zip(self.shapes, self._dimensions, strict=True)
        )

    @property
    def trained(self) -> int:
        """Coefficients that a task trains: sum of 2 k p. It is what the paper counts."""
        return sum((left + right) * min(self.p, left, right) for left, right in self._dimensions)

    @property
    def coefficients(self) -> int:
        """Numbers stored a task: 2 k p a module, or the k^2 of the core where p >= k.

        For k/2 < p < k the core would be smaller, but its cast would hide the rank, so that the
        factors are stored (``sharespace.subspace.coefficients.compact``).
        """
        return sum(
            (left + right) * self.p if self.p < min(left, right) else left * right
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


def size(layout: SizeLayout, tasks: int, counted: CountedBy) -> Size:
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


def claims(layout: SizeLayout, tasks: Sequence[int] = (6, 100, 1000)) -> tuple[Claim, ...]:
    """Both counts for some numbers of tasks.

    Args:
        layout: sizes of the stream: what is stored once, and what with every task.
        tasks: the numbers of tasks T.
    """
    return tuple(Claim(size(layout, t, "paper"), size(layout, t, "bytes")) for t in tasks)


@dataclass(frozen=True)
class Reach:
    """From how many tasks on Share is so many times smaller."""

    ratio: float
    tasks: int | None
    """None: never."""
    limit: float
    """The ratio that many tasks come near to."""


def reach(layout: SizeLayout, ratio: float, counted: CountedBy) -> Reach:
    """The smallest T with LoRA / Share >= ratio, for good.

    From T lora >= ratio (fixed + T share); in exact arithmetic.

    Raises:
        OptionError: the ratio is not a positive number.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise OptionError("ratio", f"got {ratio}", "Give a positive number, for example 100")
    fixed, share, lora = _bytes(layout, counted)
    # In fractions: near the limit a rounding error would be thousands of tasks.
    gain = lora - Fraction(ratio) * share
    limit = lora / share
    if gain < 0 or (gain == 0 and fixed):
        return Reach(ratio, None, limit)
    return Reach(ratio, max(1, math.ceil(Fraction(ratio) * fixed / gain)) if gain else 1, limit)


def _bytes(layout: SizeLayout, counted: CountedBy) -> tuple[int, int, int]:
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

    Args:
        path: of the file or folder.

    Raises:
        OptionError: there is nothing at the path.
    """
    if not path.exists():
        raise OptionError(f"path {path}", "nothing there", "Give a file or a folder")
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    by_inode = {(s.st_dev, s.st_ino): s.st_size for s in (f.stat() for f in files)}
    return sum(by_inode.values())


@dataclass(frozen=True)
class SizePoint:
    """Bytes of a number of tasks, both ways."""

    tasks: int
    adapters: int
    share: int
    measured: bool
    """False: extrapolated."""


def draw_sizes(axes: Axes, points: Sequence[SizePoint], assumption: str) -> None:
    """Kilobytes against the number of tasks; measured with marks, extrapolated dashed.

    Args:
        axes: of matplotlib.
        points: by number of tasks, the extrapolated ones last.
        assumption: of the extrapolation.
    """
    _curve(axes, points, [p.adapters for p in points], ADAPTERS, "own LoRA adapters", "s")
    _curve(axes, points, [p.share for p in points], SHARE, "one Share model", "o")
    last = points[-1]
    ratio = last.adapters / last.share
    axes.annotate(
        f"{ratio:.1f} times smaller at {last.tasks} tasks",
        (last.tasks, last.share / 1000),
        xytext=(0, 12),
        textcoords="offset points",
        ha="right",
        color=SHARE,
    )
    axes.plot([], [], color=INK, linestyle="--", label=f"extrapolated: {assumption}")
    axes.set_xlabel("number of tasks")
    axes.set_ylabel("size (kB)")
    axes.set_xlim(0, last.tasks * 1.03)
    axes.set_ylim(0, None)
    tidy(axes)
    axes.legend(frameon=False, loc="upper left", fontsize=9)


def _curve(
    axes: Axes,
    points: Sequence[SizePoint],
    sizes: Sequence[int],
    colour: str,
    label: str,
    mark: str,
) -> None:
    measured = [(p.tasks, b / 1000) for p, b in zip(points, sizes, strict=True) if p.measured]
    rest = [(p.tasks, b / 1000) for p, b in zip(points, sizes, strict=True) if not p.measured]
    axes.plot(*zip(*measured, strict=True), color=colour, marker=mark, label=f"{label}, measured")
    if rest:
        axes.plot(*zip(measured[-1], *rest, strict=True), color=colour, linestyle="--")


@dataclass(frozen=True)
class CountedPoint:
    """Bytes of a number of tasks, counted both ways."""

    tasks: int
    lora: int
    """LoRA adapters, every byte."""
    share: int
    """One Share model, every byte."""
    lora_factors: int
    """LoRA adapters without heads and files."""
    share_coefficients: int
    """Coefficients only (as the paper counts): what the tasks train, nothing else."""


def draw_counts(axes: Axes, points: Sequence[CountedPoint], ratio: float = 100) -> None:
    """Both counts against the number of tasks, log-log, with the line of so many times smaller.

    Args:
        axes: of matplotlib.
        points: by number of tasks.
        ratio: of the line, against LoRA's every byte.
    """
    tasks, last = [p.tasks for p in points], points[-1]
    curves = (
        ("LoRA adapters, every byte", [p.lora for p in points], ADAPTERS, "-", None),
        ("LoRA adapters, factors only", [p.lora_factors for p in points], ADAPTERS, ":", None),
        ("Share, every byte", [p.share for p in points], SHARE, "-", last.lora),
        (
            "Share, paper's count",
            [p.share_coefficients for p in points],
            SHARE,
            ":",
            last.lora_factors,
        ),
    )
    for name, sizes, colour, style, against in curves:
        if style == ":" and sizes == curves[0][1]:
            continue  # without heads the two counts of LoRA are one line
        axes.plot(tasks, sizes, color=colour, linestyle=style, linewidth=2, label=name)
        if against is not None:
            _tell_ratio(axes, last.tasks, sizes[-1], against, colour)
    target = [p.lora / ratio for p in points]
    axes.plot(
        tasks,
        target,
        color=PALE,
        linestyle="--",
        label=f"LoRA, every byte / {ratio:g}",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("number of tasks")
    axes.set_ylabel("size")
    axes.yaxis.set_major_formatter(_byte_label)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    # Room at the right for what stands beside the last points.
    axes.set_xlim(tasks[0], last.tasks * (last.tasks / tasks[0]) ** 0.12)
    tidy(axes)
    axes.legend(frameon=False, loc="upper left", fontsize=9)


def _tell_ratio(axes: Axes, tasks: int, nbytes: int, against: int, colour: str) -> None:
    axes.annotate(
        f"{against / nbytes:.0f}x" if against >= 10 * nbytes else f"{against / nbytes:.1f}x",
        (tasks, nbytes),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        color=colour,
    )


def _byte_label(value: float, _: object = None) -> str:
    """1000 -> 1 kB."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:g} {unit}"
        value /= 1000
    return f"{value:g} TB"
