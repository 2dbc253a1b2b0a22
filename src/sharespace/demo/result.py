"""What the demo measured: values for ``results.json``, tables for a terminal, and a picture."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Group
from rich.table import Table

from sharespace.compare.figures import Panel, draw_matrix, picture
from sharespace.compare.size import SizePoint, draw_sizes
from sharespace.stream import measures
from sharespace.stream.measures import ScoreMatrix
from sharespace.subspace.fidelity import sizes
from sharespace.subspace.state import ShareModel

_COLUMNS = (
    "head\nonly",
    "own\nLoRA",
    "Share\nnew",
    "Share\nat end",
    "trained\nLoRA",
    "trained\nShare",
)

UP_TO = 30
"""Number of tasks up to which the picture goes."""


@dataclass(frozen=True)
class TaskResult:
    """One task; scores in percent of the test images."""

    name: str
    description: str
    labels: int
    head_only: float
    own_lora: float
    own_lora_trainable: int
    """Numbers trained, the head's included; likewise below."""
    own_lora_bytes: int
    learned: float | None = None
    """Right after training in the subspace, before the merge; None for a finished adapter."""
    learned_trainable: int | None = None


@dataclass(frozen=True)
class StepResult:
    """The Share model after one step."""

    name: str
    scores: tuple[float | None, ...]
    """R[t][i] by task; None for a task that has not come yet."""
    seconds: float
    """Seconds of building or merging alone."""


@dataclass(frozen=True)
class ShareBytes:
    """Size of the final Share model, and of the tasks' own adapters."""

    basis: int
    coefficients: int
    other: int
    """Heads and ledgers."""
    own_adapters: int

    @property
    def total(self) -> int:
        """Bytes of the Share model."""
        return self.basis + self.coefficients + self.other


@dataclass(frozen=True)
class Measures:
    """The measures of ``sharespace.stream.measures``: percent points, and two fractions."""

    accuracy: float
    backward_transfer: float
    forgetting: float
    plasticity: float
    """Mean of R[i][i] - own LoRA."""
    retained: float
    """Mean score at the end / mean score of own LoRA."""
    gain_retained: float | None
    """None where own LoRA gains nothing over the head alone."""


@dataclass(frozen=True)
class DemoResult:
    """One run of the demo."""

    seed: int
    quick: bool
    settings: dict[str, Any]
    environment: dict[str, str]
    base_accuracy: float
    """Percent of the pretrained model on the plain digits."""
    tasks: tuple[TaskResult, ...]
    steps: tuple[StepResult, ...]
    measures: Measures
    bytes: ShareBytes
    sizes: tuple[SizePoint, ...]
    export_difference: float
    """Largest difference of a logit between the exported adapters, loaded by PEFT, and the Share
    model's own updates, over all tasks."""
    seconds: float

    @property
    def matrix(self) -> list[list[float | None]]:
        """R: one row a step, one column a task."""
        return [list(step.scores) for step in self.steps]

    def save(self, path: Path) -> None:
        """Write all of it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def measure(tasks: Sequence[TaskResult], steps: Sequence[StepResult]) -> Measures:
    """The continual-learning measures of a finished run."""
    scores = _score_matrix(tasks, steps)
    own, head = {t.name: t.own_lora for t in tasks}, {t.name: t.head_only for t in tasks}
    return Measures(
        accuracy=measures.acc(scores),
        backward_transfer=measures.backward_transfer(scores),
        forgetting=measures.forgetting(scores),
        plasticity=measures.plasticity(scores, own),
        retained=measures.acc(scores) / fmean(own.values()),
        gain_retained=measures.gain_retained(scores.last, own, head),
    )


def _score_matrix(tasks: Sequence[TaskResult], steps: Sequence[StepResult]) -> ScoreMatrix:
    return ScoreMatrix(
        tuple(task.name for task in tasks),
        tuple(step.name for step in steps),
        tuple(step.scores for step in steps),
    )


def environment() -> dict[str, str]:
    """Versions and hardware that the figures depend on."""
    packages = ("sharespace", "torch", "transformers", "peft", "accelerate", "scikit-learn")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads used": str(torch.get_num_threads()),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def tables(result: DemoResult) -> Group:
    """Scores per task, then sizes and the continual-learning measures."""
    return Group(_score_table(result), "", _summary_table(result))


def _score_table(result: DemoResult) -> Table:
    """A row a task and the mean: percent of the test images, and numbers trained."""
    table = Table(title="Test accuracy in %, and how many numbers were trained")
    table.add_column("task", no_wrap=True)
    table.add_column("comes as")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    scores = _score_matrix(result.tasks, result.steps)
    first, last = scores.first, scores.last
    columns = [(t.head_only, t.own_lora, first[t.name], last[t.name]) for t in result.tasks]
    for task, percentages in zip(result.tasks, columns, strict=True):
        learned = task.learned_trainable
        table.add_row(
            task.name,
            "adapter" if learned is None else "data",
            *(f"{percent:.1f}" for percent in percentages),
            f"{task.own_lora_trainable:,}",
            "-" if learned is None else f"{learned:,}",
        )
    table.add_section()
    means = (f"{fmean(column):.1f}" for column in zip(*columns, strict=True))
    table.add_row("mean", "", *means, "", "", style="bold")
    return table


def _summary_table(result: DemoResult) -> Table:
    """Sizes and measures, one a line."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    used, measured = result.bytes, result.measures
    gain = measured.gain_retained
    lines = {
        f"{len(result.tasks)} adapters": f"{used.own_adapters:,} bytes",
        "one Share model": f"{used.total:,} bytes",
        "  basis": f"{used.basis:,}",
        "  coefficients": f"{used.coefficients:,}",
        "  other (heads, ledgers)": f"{used.other:,}",
        "forgetting": f"{measured.forgetting:.2f} points",
        "backward transfer (BWT)": f"{measured.backward_transfer:+.2f} points",
        "retained of own LoRA's accuracy": f"{100 * measured.retained:.1f} %",
        "retained of its gain over head only": "-" if gain is None else f"{100 * gain:.1f} %",
        "exported to PEFT: largest logit difference": f"{result.export_difference:.0e}",
        "time": f"{result.seconds:.0f} s",
    }
    for name, value in lines.items():
        table.add_row(name, value)
    return table


def size_points(
    model: ShareModel, totals: Sequence[int], adapters: Sequence[int], p: int
) -> tuple[SizePoint, ...]:
    """Measured points for 1, 2, ... tasks, and one extrapolated point.

    One more task adds, once the bases are at their cap, min((k_left + k_right) p, k_left k_right)
    numbers a module, and as much for head and ledger as the known tasks take on average
    (docs/method.md, "Honest size").

    Args:
        model: of all the tasks, its bases at their cap.
        totals: bytes of the Share model of the first 1, 2, ... tasks.
        adapters: bytes of each task's own adapter.
        p: pseudo-rank of the tasks that would follow.
    """
    pairs = zip(accumulate(adapters), totals, strict=True)
    measured = [SizePoint(t, own, share, measured=True) for t, (own, share) in enumerate(pairs, 1)]
    count, last = len(measured), measured[-1]
    numbers = sum(min(sum(x.k) * p, x.k[0] * x.k[1]) for x in model.layers.values())
    next_task = numbers * model.dtype.itemsize + sizes(model).other / len(model.tasks)
    further = UP_TO - count
    own_then = last.adapters + round(further * last.adapters / count)
    share_then = last.share + round(further * next_task)
    return (*measured, SizePoint(UP_TO, own_then, share_then, measured=False))


def draw(result: DemoResult, path: Path) -> None:
    """Write the picture of a result as a PNG: scores after every step, and sizes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    measured, used, tasks = result.measures, result.bytes, result.tasks
    own = fmean(task.own_lora for task in tasks)
    matrix = partial(
        draw_matrix,
        steps={f"Share: {step.name}": step.scores for step in result.steps},
        references={
            "own LoRA": [task.own_lora for task in tasks],
            "head only": [task.head_only for task in tasks],
        },
        tasks=[task.name for task in tasks],
    )
    curves = partial(
        draw_sizes,
        points=result.sizes,
        assumption="each task adds its head and\nmin(2kp, k²) numbers a layer,\n"
        f"if k = {result.settings['k']} still suffices",
    )
    panels = [
        Panel("Test accuracy in % of every task, after every step", matrix, width=1.4),
        Panel(
            f"{len(tasks)} adapters: {used.own_adapters / 1000:.0f} kB, "
            f"one Share model: {used.total / 1000:.0f} kB",
            curves,
        ),
    ]
    title = (
        f"One Share model for {len(tasks)} tasks: mean accuracy {measured.accuracy:.1f} % "
        f"(own LoRA adapters {own:.1f} %), forgetting {measured.forgetting:.1f} points"
    )
    picture(path, title, panels, height=5.2, width=13.5 / 2.4)
