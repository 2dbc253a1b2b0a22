"""The experiment's figures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.generation.tables import SHOWN, Results, all_tasks, by_batch, dimensions, key
from experiments.harness.tables import scores
from sharespace.compare.figures import ADAPTERS, INK, SHARE, Panel, look, name_ticks, picture, tidy

SHORT = {"own": "own random starts", "same": "one common start"}


def draw_batches(starts: Sequence[Sequence[Results]], path: Path) -> None:
    """A panel for each start and k; one line a method."""
    panels = [
        Panel(
            f"{SHORT[runs[0]['start']]}, k = {k} of {runs[0]['width']}",
            partial(_lines, run=runs[0], k=k),
        )
        for runs in starts
        for k in dimensions(runs[0])
    ]
    count = len(all_tasks(starts[0][0]))
    title = (
        f"{count} adapters merged into one model, batch by batch:\n"
        "what is left of each batch's score\n"
        "(filled: at the end; hollow: right after its merge)"
    )
    columns = len(dimensions(starts[0][0]))
    picture(path, title, panels, columns=columns, height=4.6, width=5.0)


def _lines(axes: Any, run: Results, k: int) -> None:
    batches = range(1, len(run["batches"]) + 1)
    for number, (method, shown) in enumerate(SHOWN.items()):
        record = run["methods"].get(key(method, k))
        if record is None:
            continue
        colour, mark = look(number)
        values = by_batch(run, key(method, k), "final")
        axes.plot(batches, values, color=colour, marker=mark, label=shown, linewidth=1.8)
        if "after" in record:
            first = by_batch(run, key(method, k), "after")
            style = {"linestyle": ":", "markerfacecolor": "white"}
            axes.plot(batches, first, color=colour, marker=mark, linewidth=1.0, **style)
    axes.axhline(1.0, color="#333333", linewidth=0.8)
    axes.set_ylim(0, 1.1)
    axes.set_xticks(list(batches))
    axes.set_xlabel("batch of adapters, in the order in which they came")
    axes.set_ylabel("score / own adapter's score")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8)
    tidy(axes)


def draw_sizes(runs: Sequence[Results], path: Path) -> None:
    """Bytes against the number of adapters, and what is explained."""
    panels = [
        Panel("bytes of all tasks together", partial(_bytes, run=runs[0])),
        Panel("how much of the updates is kept", partial(_variance, runs=runs)),
    ]
    picture(path, "One Share model against separate adapters", panels, width=6.4)


def _bytes(axes: Any, run: Results) -> None:
    for number, k in enumerate(dimensions(run)):
        steps = run["methods"][key("joint", k)]["steps"]
        tasks = [step["tasks"] for step in steps]
        if not number:
            adapters = [step["adapter_bytes"] / 1e6 for step in steps]
            axes.plot(tasks, adapters, color=ADAPTERS, linewidth=2, label="separate LoRA adapters")
        colour, mark = look(number + 2)
        share = [step["share_bytes"] / 1e6 for step in steps]
        axes.plot(tasks, share, color=colour, marker=mark, label=f"Share, k = {k}")
    axes.set_xlabel("number of adapters")
    axes.set_ylabel("megabytes")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    tidy(axes)


def _variance(axes: Any, runs: Sequence[Results]) -> None:
    for number, run in enumerate(runs):
        for which, k in enumerate(dimensions(run)):
            steps = run["methods"][key("joint", k)]["steps"]
            colour, mark = look(which + 2)
            axes.plot(
                [step["tasks"] for step in steps],
                [step["explained_variance"] for step in steps],
                color=colour,
                marker=mark,
                linestyle="-" if not number else ":",
                label=f"{SHORT[run['start']]}, k = {k}",
            )
    axes.set_xlabel("number of adapters merged so far")
    axes.set_ylabel("explained variance")
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False, fontsize=9)
    tidy(axes)


def draw_learned(runs: Sequence[Results], initial: int, path: Path) -> None:
    """Bars of each task: no adapter, own LoRA, Share at the end of the stream."""
    panel = Panel("", partial(_bars, runs=runs, initial=initial), width=1.7)
    learned = len(runs[0]["tasks"]) - initial
    title = (
        f"{initial} tasks came as adapters, {learned} were learned from data in their subspace\n"
        f"(score at the end of the stream, {len(runs)} seed{'s' if len(runs) > 1 else ''})"
    )
    picture(path, title, [panel], height=4.6)


BARS = {
    "head_only": ("base model, no adapter", "#999999"),
    "per_task_lora": ("own LoRA of the task", ADAPTERS),
    "share_strict": ("Share", SHARE),
}
"""Method -> what it is called, colour."""


def _bars(axes: Any, runs: Sequence[Results], initial: int) -> None:
    tasks = runs[0]["tasks"]
    for number, (method, (shown, colour)) in enumerate(BARS.items()):
        values = [fmean(scores(run, method)[task] for run in runs) for task in tasks]
        at = [i + 0.27 * (number - 1) for i in range(len(tasks))]
        axes.bar(at, values, 0.25, color=colour, label=shown)
    axes.axvline(initial - 0.5, color=INK, linewidth=0.8, linestyle="--")
    axes.text(initial - 0.55, 108, "came as adapters", ha="right", fontsize=9)
    axes.text(initial - 0.45, 108, "learned, one after the other", ha="left", fontsize=9)
    axes.set_ylim(0, 116)
    axes.set_ylabel("percent (exact match or Rouge-L)")
    name_ticks(axes, tasks)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=3)
    tidy(axes, "y")
