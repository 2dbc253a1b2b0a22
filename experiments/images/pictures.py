"""The table and figure of the three kinds of stream, and the figure of forward transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.common.figures import aligned
from experiments.common.kinds import mean_trained

from sharespace.compare.figures import PALE, Panel, draw_steps, look, picture, tidy
from sharespace.stream.measures import ScoreMatrix, acc, forgetting


def kinds_table(records: Sequence[Mapping[str, Any]]) -> str:
    """A line a kind of stream."""
    lines = [
        "## Three kinds of stream",
        "",
        "The first tasks are the same own LoRAs in all of them. Bytes are those of the Share model "
        "without heads.",
        "",
        "| base | stream | tasks come as | mean at the end | of own LoRA | forgetting "
        "| trained a task | bytes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        own = fmean(record["own"].values())
        place = f"| {record['base']} | {record['order']}, seed {record['environment']['seed']} "
        lines.append(f"{place}| own LoRAs, no stream | {own:.2f} | 100% | - | - | - |")
        lines += [place + _kind_line(n, k, own) for n, k in record["kinds"].items()]
    return "\n".join(lines) + "\n"


def _kind_line(name: str, kind: Mapping[str, Any], own: float) -> str:
    matrix = ScoreMatrix.from_record(kind["matrix"])
    mean, trained = acc(matrix), mean_trained(kind)
    numbers = f"{trained:,.0f}" if trained else "0"
    cells = (name, f"{mean:.2f}", f"{mean / own:.1%}", f"{forgetting(matrix):.2f}", numbers)
    return f"| {' | '.join(cells)} | {kind['bytes']:,} |"


def draw_kinds(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The mean step by step, a panel a stream (its first seed)."""
    first = {(r["base"], r["order"]): r for r in reversed(records)}
    panels = [_kinds(first[key]) for key in sorted(first)]
    picture(path, "Tasks that come as data, as adapters, or mixed", panels)


def _kinds(record: Mapping[str, Any]) -> Panel:
    tasks = record["tasks"]
    curves = {
        name: [aligned(ScoreMatrix.from_record(kind["matrix"]), len(tasks))]
        for name, kind in record["kinds"].items()
    }
    levels = {"own LoRA": fmean(record["own"].values())}
    draw = partial(draw_steps, methods=curves, steps=tasks, levels=levels)
    return Panel(f"{record['base']}: {record['order']}", draw)


def draw_transfer(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Score against steps, a panel a new task (its first seed)."""
    first = {(r["base"], r["task"]): r for r in reversed(records)}
    chosen = [first[key] for key in sorted(first)]
    panels = [
        Panel(f"{r['base']}: new task {r['task']}", partial(_curves, record=r)) for r in chosen
    ]
    picture(path, "A new task, learned after 0 to 6 others", panels)


def _curves(axes: Any, record: Mapping[str, Any]) -> None:
    for i, (name, curve) in enumerate(record["curves"].items()):
        colour, mark = look(i)
        label = name if name == "own LoRA" else f"core, {name} tasks"
        axes.plot(curve["steps"], curve["scores"], color=colour, marker=mark, label=label)
    axes.axhline(record["head_only"], color=PALE, linestyle="--", label="head only")
    axes.set_xlabel("training steps")
    axes.set_ylabel("percent of the test images")
    tidy(axes)
    axes.legend(fontsize="small", frameon=False, loc="best")
