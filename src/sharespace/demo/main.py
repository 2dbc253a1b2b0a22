"""The demo from end to end: pretrain, adapters, Share, two tasks learned in it, all measured.

The demo's output folder.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sharespace.demo.result import (
    DemoResult,
    ShareBytes,
    StepResult,
    TaskResult,
    draw,
    environment,
    measure,
    size_points,
)
from sharespace.demo.tasks import (
    FULL,
    QUICK,
    TASKS,
    Job,
    Settings,
    export_difference,
    learn_in_subspace,
    load,
    pretrain,
    score_in_share,
    train_head,
    train_lora,
)
from sharespace.errors import OptionError
from sharespace.extras import require
from sharespace.formats import read_adapter
from sharespace.learn.training import one_thread, quiet, seeded
from sharespace.share import Share
from sharespace.subspace.fidelity import sizes

_NEEDED = {
    "sklearn": "train",
    "accelerate": "train",
    "transformers": "train",
    "peft": "train",
    "matplotlib": "report",
}

MARK = ".sharespace-demo"
"""File by which a folder of an earlier run is known, so that nothing else is ever replaced."""


class Log:
    """Passes lines on, with the seconds since the start."""

    def __init__(self, write: Callable[[str], None] | None) -> None:
        self._write, self._began = write, time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def __call__(self, text: str) -> None:
        if self._write:
            self._write(f"{self.seconds:5.1f} s  {text}")


@dataclass(frozen=True, eq=False)
class Stream:
    """The Share model and what was measured of it, step by step."""

    share: Share
    rows: tuple[TaskResult, ...]
    steps: tuple[StepResult, ...]
    totals: tuple[int, ...]
    """Bytes of the Share model of the first 1, 2, 3 ... tasks."""


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
    clock, settings = Log(log), QUICK if quick else FULL
    with quiet(), seeded(seed), one_thread():
        # A missing one is told now, not after a minute of training.
        for module, extra in _NEEDED.items():
            require(module, extra)
        folder = prepare(out)
        jobs = _jobs(folder, settings, seed, clock)
        rows = [_alone(job, folder, clock) for job in jobs]
        stream = _learn(_build(jobs, rows, folder, clock), jobs, clock)
        difference = _export(stream, jobs, folder, clock)
        result = _result(stream, jobs, seed, quick, difference, clock)
    result.save(folder.results)
    draw(result, folder.picture)
    clock(f"results and picture written to {out}")
    return result


def _jobs(folder: Folder, settings: Settings, seed: int, log: Log) -> list[Job]:
    digits = load(settings.train_images, seed)
    base = pretrain(digits, settings, folder.base)
    log(f"vision transformer pretrained on {len(digits.train[1])} digits: {base.accuracy:.1f} %")
    return [
        Job(task, *digits.examples(task), base, 100 * seed + i)
        for i, task in enumerate(TASKS[-settings.tasks :])
    ]


def _alone(job: Job, folder: Folder, log: Log) -> TaskResult:
    """A task without Share: the head alone, and its own LoRA adapter."""
    head = train_head(job)
    lora = train_lora(job, folder.own_lora(job.task.name))
    log(f"{job.task.name}: head only {head.score:.1f} %, own LoRA {lora.score:.1f} %")
    return TaskResult(
        name=job.task.name,
        description=job.task.description,
        labels=job.task.labels,
        head_only=head.score,
        own_lora=lora.score,
        own_lora_trainable=lora.trainable,
        own_lora_bytes=read_adapter(folder.own_lora(job.task.name)).nbytes,
    )


def _build(jobs: Sequence[Job], rows: Sequence[TaskResult], folder: Folder, log: Log) -> Stream:
    """Step 1: the Share model of the finished adapters."""
    settings = jobs[0].base.settings
    paths = [folder.own_lora(job.task.name) for job in jobs[: settings.built_from]]
    totals = []
    for count in range(1, len(paths) + 1):
        began = time.perf_counter()
        share = Share.from_adapters(paths[:count], k=settings.k)
        seconds = time.perf_counter() - began
        totals.append(sizes(share.model).total)
    step = _step(f"{len(paths)} adapters", share, jobs, seconds)
    log(f"Share model built from {len(paths)} adapters in {seconds:.2f} s")
    return Stream(share, tuple(rows), (step,), tuple(totals))


def _learn(stream: Stream, jobs: Sequence[Job], log: Log) -> Stream:
    """Steps 2 and 3 for every further task: learned in the subspace, then merged."""
    for i in range(jobs[0].base.settings.built_from, len(jobs)):
        adapter, trained = learn_in_subspace(jobs[i], stream.share)
        began = time.perf_counter()
        share = stream.share.merge(adapter)
        step = _step(f"+ {adapter.name}", share, jobs, time.perf_counter() - began)
        log(f"{adapter.name}: learned in the subspace {trained.score:.1f} %, then merged")
        row = replace(stream.rows[i], learned=trained.score, learned_trainable=trained.trainable)
        stream = Stream(
            share,
            (*stream.rows[:i], row, *stream.rows[i + 1 :]),
            (*stream.steps, step),
            (*stream.totals, sizes(share.model).total),
        )
    return stream


def _step(name: str, share: Share, jobs: Sequence[Job], seconds: float) -> StepResult:
    """Every task that the Share model knows, scored as it is in there now."""
    known = set(share.tasks)
    scores = [score_in_share(job, share) if job.task.name in known else None for job in jobs]
    return StepResult(name, tuple(scores), seconds)


def _export(stream: Stream, jobs: Sequence[Job], folder: Folder, log: Log) -> float:
    """Save the model, export every task, load it with PEFT: the largest difference of a logit."""
    stream.share.save(folder.share)
    loaded = Share.load(folder.share)
    differences = [export_difference(job, loaded, folder.exported(job.task.name)) for job in jobs]
    log(f"all tasks exported and loaded by PEFT: logits differ by {max(differences):.0e} at most")
    return max(differences)


def _result(
    stream: Stream, jobs: Sequence[Job], seed: int, quick: bool, difference: float, log: Log
) -> DemoResult:
    settings, used = jobs[0].base.settings, sizes(stream.share.model)
    own = [row.own_lora_bytes for row in stream.rows]
    return DemoResult(
        seed=seed,
        quick=quick,
        settings=asdict(settings),
        environment=environment(),
        base_accuracy=jobs[0].base.accuracy,
        tasks=stream.rows,
        steps=stream.steps,
        measures=measure(stream.rows, stream.steps),
        bytes=ShareBytes(used.basis, used.coefficients, used.other, sum(own)),
        sizes=size_points(stream.share.model, stream.totals, own, settings.p),
        export_difference=difference,
        seconds=log.seconds,
    )


@dataclass(frozen=True)
class Folder:
    """Where the demo's files go."""

    root: Path

    @property
    def base(self) -> Path:
        """The pretrained model."""
        return self.root / "base"

    @property
    def share(self) -> Path:
        """The final Share model."""
        return self.root / "share"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def picture(self) -> Path:
        return self.root / "demo.png"

    def own_lora(self, task: str) -> Path:
        """The task's own adapter, by PEFT."""
        return self.root / "own-lora" / task

    def exported(self, task: str) -> Path:
        """The task out of the final Share model, as a PEFT adapter."""
        return self.root / "exported" / task


def prepare(out: Path) -> Folder:
    """The folder without what an earlier run of the demo left there; other files in it stay.

    Raises:
        OptionError: there is something at the path that no demo made.
    """
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(str(out), "is not empty and not an earlier demo", "Choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    folder = Folder(out)
    for old in (folder.base, folder.share, out / "own-lora", out / "exported"):
        shutil.rmtree(old, ignore_errors=True)
    for file in (folder.results, folder.picture):
        file.unlink(missing_ok=True)
    return folder
