"""Head only, own LoRA and Share at the end of a stream, on all test sets of every task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import environment

from experiments.common import own as own_files
from experiments.common.runs import write
from experiments.pose.rotations import error, rotation
from experiments.pose.scoring import pose_score
from experiments.pose.task import PoseTask
from sharespace import Share
from sharespace.errors import TaskNotFoundError
from sharespace.learn import load_task
from sharespace.subspace.adapter import Adapter
from sharespace.tuner import release

SHOWN = 12
"""Views of each test set whose angles are kept, for the figure."""
Ready = Callable[[PoseTask], Any]
"""Gives the model of a task in evaluation mode."""


def evaluate(tasks: Sequence[PoseTask], own: Path, store: Path, out: Path) -> None:
    """Write all scores.

    Args:
        tasks: of the stream.
        own: folder with the own LoRAs (``experiments.common.own``).
        store: the Share model at the end of the stream.
        out: results file: task -> method -> test set -> scores, and some of the angles.

    Raises:
        TaskNotFoundError: a task has no own LoRA there.
    """
    known, share = own_files.load(own), Share.load(store)
    missing = [task.name for task in tasks if task.name not in known]
    if missing:
        raise TaskNotFoundError(f"task {missing[0]!r}", f"has no own LoRA in {own}")
    methods = {
        "head_only": None,
        "per_task_lora": {name: exact(found.adapter) for name, found in known.items()},
        "share_strict": {task.name: share for task in tasks},
    }
    found: dict[str, Any] = {}
    for task in tasks:
        found[task.name] = {}
        for name, shares in methods.items():
            with ready(task, None if shares is None else shares[task.name]) as model:
                found[task.name][name] = measure(task, model)
    write(out, {"environment": environment(0), "scores": found})


def exact(adapter: Adapter) -> Share:
    """An adapter as a Share model of its own, nothing cut off."""
    ranks = [adapter.layer(module).up.shape[1] for module in adapter.shapes]
    return Share.from_adapters([adapter], k=max(ranks))


@contextmanager
def ready(task: PoseTask, share: Share | None) -> Iterator[Any]:
    """A task's model as a Share model holds it; None: with its head alone."""
    model = task.model()
    if share is None:
        yield model.eval()
        return
    adapted = load_task(model, share, task.name).eval()
    yield adapted
    release(adapted)


def measure(task: PoseTask, model: Any) -> dict[str, Any]:
    """Test set -> scores, and the angles and errors of its first views."""
    found = {}
    for test in task.tests:
        predicted, true = task.predict(model, test)
        errors = error(rotation(predicted.double()), rotation(true.double()), task.group)
        found[test] = {
            **pose_score(predicted, true, task.group).to_record(),
            "views": len(true),
            "predicted": predicted[:SHOWN].tolist(),
            "errors": torch.rad2deg(errors[:SHOWN]).tolist(),
        }
    return found
