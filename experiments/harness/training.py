"""One LoRA or one core on one task, outside of any stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sharespace import Share
from sharespace.compare import ComparisonSettings, OwnLora, TaskJob, Workbench
from sharespace.compare.lora import add_lora, count_trained
from sharespace.compare.methods.random_basis import random_model
from sharespace.learn import adapt, fit, load_task
from sharespace.subspace.adapter import Adapter
from sharespace.tuner import release


def subspace(job: TaskJob, settings: ComparisonSettings, earlier: Sequence[OwnLora]) -> Share:
    """Of the earlier tasks' own LoRAs; without any, a random basis of the same size."""
    if not earlier:
        return Share(random_model(Workbench([job], settings)))
    return Share.from_adapters([o.adapter for o in earlier], k=settings.k, seed=settings.seed)


def with_lora(job: TaskJob, settings: ComparisonSettings) -> Any:
    """A fresh model of the task with a LoRA in it, ready to be trained."""
    return add_lora(job.model().requires_grad_(False), settings, job.heads)


def train_lora(
    job: TaskJob, settings: ComparisonSettings, model: Any, callbacks: Sequence[Any] = ()
) -> int:
    """Train a model of ``with_lora`` in place; how many numbers were trained, heads left out."""
    training = replace(settings.lora, seed=settings.seed)
    trained = count_trained(model, job.heads)
    fit(model, job.data, training, replace(job.setup, callbacks=list(callbacks)))
    return trained


@contextmanager
def trained_core(
    job: TaskJob,
    settings: ComparisonSettings,
    share: Share,
    model: Any,
    callbacks: Sequence[Any] = (),
) -> Iterator[tuple[Any, int]]:
    """The task learned in a subspace: the adapted model, and how many numbers were trained.

    Args:
        job: the task.
        settings: of the core and its training.
        share: holds the subspace.
        model: a fresh model of the task; PEFT puts its layers into it.
        callbacks: of the Trainer.
    """
    method = replace(settings.method, heads=job.heads, seed=settings.seed)
    training = replace(settings.coefficients, seed=settings.seed)
    setup = replace(job.setup, callbacks=list(callbacks))
    learned = adapt(model, share, job.data, training, task=job.name, method=method, setup=setup)
    try:
        numbers = learned.trainable.coefficients + learned.trainable.temporary
        yield learned.model.eval(), numbers
    finally:
        release(learned.model)


def exact(adapter: Adapter) -> Share:
    """An adapter as a Share model of its own, nothing cut off."""
    ranks = [adapter.layer(module).up.shape[1] for module in adapter.shapes]
    return Share.from_adapters([adapter], k=max(ranks))


@contextmanager
def holding(model: Any, share: Share | None, task: str) -> Iterator[Any]:
    """A fresh model as a Share model holds its task; None: with its head alone."""
    if share is None:
        yield model.eval()
        return
    adapted = load_task(model, share, task).eval()
    try:
        yield adapted
    finally:
        release(adapted)
