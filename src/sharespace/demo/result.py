"""What the demo measured: frozen values that go into ``results.json`` as they are.

The demo's result as tables for a terminal.

Bytes against the number of tasks: what was measured, and how it goes on (method.md,
"Honest size").

The demo's picture.

The demo's picture.
"""

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

from sharespace.compare.figures import Panel, ScoreRows, draw_matrix, picture
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
"""Tasks in the picture."""


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
    """Of building or merging alone."""


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
        return self.basis + self.coefficients + self.other


@dataclass(frozen=True)
class Measures:
    """As defined in ``sharespace.stream.measures``; percent points, and two fractions."""

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
    """Of the pretrained model on the plain digits."""
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


def score_matrix(tasks: Sequence[TaskResult], steps: Sequence[StepResult]) -> ScoreMatrix:
    """R of a run."""
    return ScoreMatrix(
        tuple(task.name for task in tasks),
        tuple(step.name for step in steps),
        tuple(step.scores for step in steps),
    )


def measure(tasks: Sequence[TaskResult], steps: Sequence[StepResult]) -> Measures:
    """The continual-learning measures of a finished run."""
    scores = score_matrix(tasks, steps)
    own, head = {t.name: t.own_lora for t in tasks}, {t.name: t.head_only for t in tasks}
    return Measures(
        accuracy=measures.acc(scores),
        backward_transfer=measures.backward_transfer(scores),
        forgetting=measures.forgetting(scores),
        plasticity=measures.plasticity(scores, own),
        retained=measures.acc(scores) / fmean(own.values()),
        gain_retained=measures.gain_retained(scores.last, own, head),
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


def size_points(
    model: ShareModel, totals: Sequence[int], adapters: Sequence[int], p: int
) -> tuple[SizePoint, ...]:
    """Measured points for 1, 2, ... tasks, and one extrapolated point.

    Args:
        model: of all the tasks, its bases at their cap.
        totals: bytes of the Share model of the first 1, 2, ... tasks.
        adapters: bytes of each task's own adapter.
        p: pseudo-rank of the tasks that would follow.
    """
    cumulated = list(accumulate(adapters))
    measured = [
        SizePoint(t, a, s, measured=True)
        for t, (a, s) in enumerate(zip(cumulated, totals, strict=True), 1)
    ]
    count, last = len(measured), measured[-1]
    more = UP_TO - count
    adapters_then = last.adapters + round(more * last.adapters / count)
    share_then = last.share + round(more * (next_task_bytes(model, p)))
    return (*measured, SizePoint(UP_TO, adapters_then, share_then, measured=False))


def next_task_bytes(model: ShareModel, p: int) -> float:
    """Bytes that one more task adds once the bases are at their cap.

    The sum over modules of min((k_left + k_right) p, k_left k_right) numbers, and as much for head
    and ledger as the known tasks take on average.
    """
    numbers = sum(min(sum(x.k) * p, x.k[0] * x.k[1]) for x in model.layers.values())
    return numbers * model.dtype.itemsize + sizes(model).other / len(model.tasks)


def draw(result: DemoResult, path: Path) -> None:
    """Write the picture of a result as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    found, used, tasks = result.measures, result.bytes, result.tasks
    own = fmean(task.own_lora for task in tasks)
    demo_picture(
        path,
        {f"Share: {step.name}": step.scores for step in result.steps},
        {
            "own LoRA": [task.own_lora for task in tasks],
            "head only": [task.head_only for task in tasks],
        },
        [task.name for task in tasks],
        result.sizes,
        "each task adds its head and\nmin(2kp, k²) numbers a layer,\n"
        f"if k = {result.settings['k']} still suffices",
        (
            f"One Share model for {len(tasks)} tasks: mean accuracy {found.accuracy:.1f} % "
            f"(own LoRA adapters {own:.1f} %), forgetting {found.forgetting:.1f} points",
            "Test accuracy in % of every task, after every step",
            f"{len(tasks)} adapters: {used.own_adapters / 1000:.0f} kB, "
            f"one Share model: {used.total / 1000:.0f} kB",
        ),
    )


def demo_picture(
    path: Path,
    steps: ScoreRows,
    references: ScoreRows,
    tasks: Sequence[str],
    sizes: Sequence[SizePoint],
    assumption: str,
    titles: tuple[str, str, str],
) -> None:
    """Scores after every step and sizes side by side, as a PNG.

    Args:
        path: where to.
        steps, references, tasks: see ``draw_matrix``.
        sizes, assumption: see ``draw_sizes``.
        titles: of the picture, the matrix and the sizes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    matrix = partial(draw_matrix, steps=steps, references=references, tasks=tasks)
    curves = partial(draw_sizes, points=sizes, assumption=assumption)
    panels = [Panel(titles[1], matrix, width=1.4), Panel(titles[2], curves)]
    picture(path, titles[0], panels, height=5.2, width=13.5 / 2.4)
