"""The demo's result as tables for a terminal."""

from __future__ import annotations

from statistics import fmean

from rich.console import Group
from rich.table import Table

from sharespace.demo.result import DemoResult, TaskResult, score_matrix

_COLUMNS = (
    "head\nonly",
    "own\nLoRA",
    "Share\nnew",
    "Share\nat end",
    "trained\nLoRA",
    "trained\nShare",
)


def tables(result: DemoResult) -> Group:
    """Scores per task, then sizes and the continual-learning measures."""
    return Group(score_table(result), "", summary_table(result))


def score_table(result: DemoResult) -> Table:
    """A row a task and the mean: percent of the test images, and numbers trained."""
    table = Table(title="Test accuracy in %, and how many numbers were trained")
    table.add_column("task", no_wrap=True)
    table.add_column("comes as")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    scores = score_matrix(result.tasks, result.steps)
    first, last = list(scores.first.values()), list(scores.last.values())
    for task, new, end in zip(result.tasks, first, last, strict=True):
        table.add_row(*_row(task, new, end))
    table.add_section()
    means = [[t.head_only for t in result.tasks], [t.own_lora for t in result.tasks], first, last]
    table.add_row("mean", "", *(f"{fmean(column):.1f}" for column in means), "", "", style="bold")
    return table


def _row(task: TaskResult, new: float, end: float) -> list[str]:
    scores = [f"{score:.1f}" for score in (task.head_only, task.own_lora, new, end)]
    learned = task.learned_trainable
    return [
        task.name,
        "adapter" if learned is None else "data",
        *scores,
        f"{task.own_lora_trainable:,}",
        "-" if learned is None else f"{learned:,}",
    ]


def summary_table(result: DemoResult) -> Table:
    """Sizes and measures, one a line."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    used, found = result.bytes, result.measures
    lines = {
        f"{len(result.tasks)} adapters": f"{used.own_adapters:,} bytes",
        "one Share model": f"{used.total:,} bytes",
        "  basis": f"{used.basis:,}",
        "  coefficients": f"{used.coefficients:,}",
        "  other (heads, ledgers)": f"{used.other:,}",
        "forgetting": f"{found.forgetting:.2f} points",
        "backward transfer (BWT)": f"{found.backward_transfer:+.2f} points",
        "retained of own LoRA's accuracy": _percent(found.retained),
        "retained of its gain over head only": _percent(found.gain_retained),
        "exported to PEFT: largest logit difference": f"{result.export_difference:.0e}",
        "time": f"{result.seconds:.0f} s",
    }
    for name, value in lines.items():
        table.add_row(name, value)
    return table


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"
