"""Bytes against the number of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sharespace.report.style import ADAPTERS, INK, PALE, SHARE, tidy


@dataclass(frozen=True)
class SizePoint:
    """Bytes of a number of tasks, both ways."""

    tasks: int
    adapters: int
    share: int
    measured: bool
    """False: extrapolated."""


def draw_sizes(axes: Any, points: Sequence[SizePoint], assumption: str) -> None:
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
    axes: Any, points: Sequence[SizePoint], sizes: Sequence[int], colour: str, label: str, mark: str
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
    """The paper's count: coefficients that the tasks train, nothing else."""


def draw_counts(axes: Any, points: Sequence[CountedPoint], ratio: float = 100) -> None:
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


def _tell_ratio(axes: Any, tasks: int, nbytes: int, against: int, colour: str) -> None:
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
