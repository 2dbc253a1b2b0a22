"""The demo from end to end: pretrain, adapters, one stream through a Share model, all measured."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from sharespace.demo.digits import FULL, QUICK, VIEWS, Digits, DigitTask, pretrain
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
from sharespace.errors import OptionError
from sharespace.extras import require
from sharespace.formats import read_adapter
from sharespace.learn.training import one_thread, quiet, seeded
from sharespace.share import Share
from sharespace.stream.loop import StreamLoop
from sharespace.subspace.adapter import Adapter
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
        sizes=size_points(share.model, stream.totals, own, settings.method.p),
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
