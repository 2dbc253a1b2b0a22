"""The demo from end to end: pretrain, adapters, one stream through a Share model, all measured.

Below are its results: values for ``results.json``, tables for a terminal, and a picture.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
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
from sharespace.demo.digits import FULL, QUICK, VIEWS, Digits, DigitTask, pretrain
from sharespace.errors import OptionError
from sharespace.extras import require
from sharespace.formats import read_adapter
from sharespace.learn.training import one_thread, quiet, seeded
from sharespace.share import Share
from sharespace.stream import measures
from sharespace.stream.loop import StreamLoop
from sharespace.stream.measures import ScoreMatrix
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.fidelity import sizes
from sharespace.subspace.state import ShareModel

_NEEDED = {
    "sklearn": "train",
    "accelerate": "train",
    "transformers": "train",
    "peft": "train",
    "matplotlib": "report",
}

MARK = ".sharespace-demo"
"""File by which a folder of an earlier run is known, so that nothing else is ever replaced."""


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


def run(
    out: Path,
    *,
    seed: int = 0,
    quick: bool = False,
    log: Callable[[str], None] | None = None,
) -> DemoResult:
    """Run the demo; write the models, ``results.json`` and ``demo.png`` into ``out``.

    Args:
        out: a new or empty folder, or that of an earlier run, which is replaced.
        seed: of the split, the weights and the order of the examples; one seed gives one result
            on one machine.
        quick: a tiny version for tests, too short to learn much.
        log: gets one line for every part that is done.

    Raises:
        MissingExtraError: the extras ``train`` and ``report`` are needed.
        OptionError: there is something else at ``out``.
    """
    began, settings = time.perf_counter(), QUICK if quick else FULL

    def say(text: str) -> None:
        if log is not None:
            log(f"{time.perf_counter() - began:5.1f} s  {text}")

    with quiet(), seeded(seed), one_thread():
        # What is missing is told now, not after a minute of training.
        for module, extra in _NEEDED.items():
            require(module, extra)
        _prepare(out)
        digits = Digits(settings.train_images, seed)
        base = pretrain(digits, settings, out / "base")
        plain = f"{settings.train_images} digits: {base.accuracy:.1f} %"
        say(f"vision transformer pretrained on {plain}")
        views = enumerate(VIEWS[-settings.tasks :])
        tasks = [DigitTask(view, digits, base, 100 * seed + i) for i, view in views]
        stream = _DemoStream(tasks, out, say)
        share = stream.run()
        share.save(out / "share")
        stored = Share.load(out / "share")
        difference = max(
            task.export_difference(stored, out / "exported" / task.view.name) for task in tasks
        )
        say(f"all tasks exported and loaded by PEFT: logits differ by {difference:.0e} at most")
    rows, used = tuple(stream.rows.values()), sizes(share.model)
    own = [row.own_lora_bytes for row in rows]
    result = DemoResult(
        seed=seed,
        quick=quick,
        settings=asdict(settings),
        environment=environment(),
        base_accuracy=base.accuracy,
        tasks=rows,
        steps=tuple(stream.steps),
        measures=measure(rows, stream.steps),
        bytes=ShareBytes(used.basis, used.coefficients, used.other, sum(own)),
        sizes=size_points(share.model, stream.totals, own, settings.method.p or 0),
        export_difference=difference,
        seconds=time.perf_counter() - began,
    )
    result.save(out / "results.json")
    draw(result, out / "demo.png")
    say(f"results and picture written to {out}")
    return result


class _DemoStream:
    """The stream of the demo's tasks, and what is measured of it step by step."""

    def __init__(self, tasks: Sequence[DigitTask], out: Path, say: Callable[[str], None]) -> None:
        self.tasks = {task.view.name: task for task in tasks}
        self.out, self.say, self.settings = out, say, tasks[0].base.settings
        self.rows = {name: self._alone(task) for name, task in self.tasks.items()}
        self.steps: list[StepResult] = []
        self.totals: list[int] = []
        """Bytes of the Share model of the first 1, 2, 3 ... tasks."""
        self.seconds = 0.0
        """Time of the last build or merge alone."""

    def run(self) -> Share:
        """Build from the first tasks' adapters, then learn and merge the others."""
        loop = StreamLoop(self._build, self._learn, self._score, self._merge)
        for step in loop.run(list(self.tasks), self.settings.built_from):
            scores = tuple(step.scores.get(name) for name in self.tasks)
            if step.number == 1:
                name = f"{len(step.tasks)} adapters"
                self.say(f"Share model built from {name} in {self.seconds:.2f} s")
            else:
                name, new = f"+ {step.name}", self.rows[step.name].learned
                self.say(f"{step.name}: learned in the subspace {new:.1f} %, then merged")
            self.steps.append(StepResult(name, scores, self.seconds))
        return step.share

    def _alone(self, task: DigitTask) -> TaskResult:
        """A task without Share: the head alone, and its own LoRA adapter."""
        name, folder = task.view.name, self._own_lora(task.view.name)
        head, (lora, trained) = task.train_head(), task.train_lora(folder)
        self.say(f"{name}: head only {head:.1f} %, own LoRA {lora:.1f} %")
        return TaskResult(
            name=name,
            description=task.view.description,
            labels=task.view.labels,
            head_only=head,
            own_lora=lora,
            own_lora_trainable=trained,
            own_lora_bytes=read_adapter(folder).nbytes,
        )

    def _own_lora(self, name: str) -> Path:
        return self.out / "own-lora" / name

    def _build(self, names: Sequence[str]) -> Share:
        # Of fewer adapters too: the picture shows the size by number of tasks.
        for count in range(1, len(names) + 1):
            began = time.perf_counter()
            paths = [self._own_lora(name) for name in names[:count]]
            share = Share.from_adapters(paths, k=self.settings.k)
            self._measure(share, began)
        return share

    def _learn(self, share: Share, name: str) -> Adapter:
        task = self.tasks[name]
        adapted = task.learn(share)
        self.rows[name] = replace(
            self.rows[name],
            learned=task.test.accuracy(adapted.model),
            learned_trainable=adapted.trainable.total,
        )
        return adapted.adapter

    def _merge(self, share: Share, adapter: Adapter) -> Share:
        began = time.perf_counter()
        merged = share.merge(adapter)
        self._measure(merged, began)
        return merged

    def _measure(self, share: Share, began: float) -> None:
        self.seconds = time.perf_counter() - began
        self.totals.append(sizes(share.model).total)

    def _score(self, share: Share, name: str) -> float:
        task = self.tasks[name]
        return task.test.accuracy(task.in_share(share))


def _prepare(out: Path) -> None:
    """Clear what an earlier run of the demo left in the folder; other files in it stay.

    Raises:
        OptionError: there is something at the path that no demo made.
    """
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(str(out), "is not empty and not an earlier demo", "Choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    for name in ("base", "share", "own-lora", "exported"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("results.json", "demo.png"):
        (out / name).unlink(missing_ok=True)


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
