"""A stream of tasks: scores step by step, and what was forgotten of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from sharespace.report.style import INK, PALE, PALETTE, crowded, look, name_ticks, tidy

Runs = Sequence[Sequence[float | None]]
"""A row a run (seed), a value a step; None where there is none yet."""


def draw_steps(
    axes: Any,
    methods: Mapping[str, Runs],
    steps: Sequence[str],
    levels: Mapping[str, float] | None = None,
    *,
    label: str = "mean score over the tasks so far",
) -> None:
    """Mean over the tasks seen so far, step by step; a band of one standard deviation.

    Args:
        axes: of matplotlib.
        methods: method -> runs x steps.
        steps: names of the steps.
        levels: what to compare the end with -> its score, as a line.
        label: of the y axis.
    """
    for i, (name, runs) in enumerate(methods.items()):
        colour, mark = look(i)
        at, means, spreads = _over_runs(runs)
        axes.plot(at, means, color=colour, marker=mark, label=f"{name}{_count(runs)}")
        if any(spreads):
            low = [m - s for m, s in zip(means, spreads, strict=True)]
            high = [m + s for m, s in zip(means, spreads, strict=True)]
            axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    for i, (name, level) in enumerate((levels or {}).items()):
        style = ("--", ":", "-.")[i % 3]
        axes.axhline(level, color=PALE, linestyle=style, label=f"{name}, end: {level:.1f}")
    name_ticks(axes, steps)
    axes.set_ylabel(label)
    tidy(axes)
    _legend_below(axes, len(methods) + len(levels or {}), steps)


def draw_forgetting(
    axes: Any, methods: Mapping[str, Mapping[str, Sequence[float]]], *, label: str = "points"
) -> None:
    """What was forgotten of each task, a group of bars a task; below 0: the task got better.

    Args:
        axes: of matplotlib.
        methods: method -> task -> a value a run.
        label: unit of the y axis.
    """
    tasks = list(dict.fromkeys(task for by_task in methods.values() for task in by_task))
    wide = 0.8 / len(methods)
    for i, (name, by_task) in enumerate(methods.items()):
        known = [t for t in tasks if t in by_task]
        at = [tasks.index(t) + (i - (len(methods) - 1) / 2) * wide for t in known]
        spreads = [_spread(by_task[t]) for t in known]
        # A colour comes again, hatched, where there are more methods than colours.
        hatch = "///" if i >= len(PALETTE) else ""
        bars = {
            "color": look(i)[0],
            "width": 0.92 * wide,
            "label": name,
            "hatch": hatch,
            "edgecolor": "white",
            "linewidth": 0,
        }
        errors = {"yerr": spreads, "error_kw": {"elinewidth": 1}} if any(spreads) else {}
        axes.bar(at, [fmean(by_task[t]) for t in known], **bars, **errors)
    axes.axhline(0, color=INK, linewidth=0.8)
    name_ticks(axes, tasks)
    axes.set_ylabel(f"forgetting ({label})")
    tidy(axes, "y")
    axes.tick_params(axis="x", length=0)
    _legend_below(axes, len(methods), tasks)


def _over_runs(runs: Runs) -> tuple[list[int], list[float], list[float]]:
    """Steps with a value in every run, their means and standard deviations."""
    at, means, spreads = [], [], []
    for t, column in enumerate(zip(*runs, strict=True)):
        values = [value for value in column if value is not None]
        if len(values) == len(column):
            at.append(t)
            means.append(fmean(values))
            spreads.append(_spread(values))
    return at, means, spreads


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _count(runs: Runs) -> str:
    return f" ({len(runs)} seeds)" if len(runs) > 1 else ""


def _legend_below(axes: Any, entries: int, names: Sequence[str]) -> None:
    """Below the names of the x axis, where it hides no data.

    Args:
        axes: of matplotlib.
        entries: of the legend.
        names: below the x axis.
    """
    # Slanted names reach further down the longer they are.
    room = 0.1 + 0.015 * max(map(len, names)) if crowded(names) else 0.1
    # Levels have long names: three in a row would be cut off.
    anchor, columns = (0.5, -room), 3 if entries > 3 else 2
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=anchor, ncols=columns, fontsize=9)
