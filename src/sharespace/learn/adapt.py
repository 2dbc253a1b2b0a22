"""Learn a new task from data inside a Share model's subspace (method.md, step 2).

No earlier task's data, coefficients or head is read or changed, but for the cores that ``start``
names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from sharespace.extras import require
from sharespace.formats.components import COMPONENTS
from sharespace.learn.directions import informed_frames, nearest_task, place_frames
from sharespace.learn.prepare import Trainable, count_trainable, prepare
from sharespace.learn.settings import TaskMethod, TrainingSettings
from sharespace.learn.training import Fit, Setup, fit
from sharespace.share import Share
from sharespace.subspace.adapter import Adapter


@dataclass(frozen=True, eq=False)
class Adapted:
    """A task that was learned, and not merged yet."""

    adapter: Adapter
    """Temporary directions and heads included; ``Share.merge`` takes it."""
    model: Any
    """The ``PeftModel`` it was trained in; ``sharespace.tuner.release`` gives the base model
    back."""
    fit: Fit
    trainable: Trainable
    start: str
    """Where it started: what ``"nearest"`` chose."""


def adapt(
    model: nn.Module,
    share: Share,
    data: Any,
    training: TrainingSettings,
    *,
    task: str,
    method: TaskMethod | None = None,
    setup: Setup | None = None,
) -> Adapted:
    """Train a new task's coefficients, temporary directions and heads; the bases stay frozen.

    Args:
        model: the base model; PEFT puts its layers into it, and takes them out again where
            training fails.
        share: does not change; ``share.merge(result.adapter)`` absorbs the task.
        data: examples for Trainer.
        training: steps, learning rate and the like.
        task: its name.
        method: pseudo-rank, temporary directions, start, heads.
        setup: evaluation, metrics, callbacks, another trainer.

    Raises:
        TaskExistsError, TaskNotFoundError, MismatchError, OptionError: see ``prepare``.
        MissingExtraError: PEFT, transformers or accelerate is not installed.
    """
    method = method or TaskMethod()
    if method.start == "nearest":
        method = replace(method, start=_nearest(model, share, data, training, task, method, setup))
    with released_on_failure(prepare(model, share, task, method)) as peft_model:
        counted = count_trainable(peft_model)
        if method.head_steps:
            _train_heads(peft_model, data, training, method, setup)
        if method.directions == "gradient":
            place_frames(peft_model, informed_frames(peft_model, data, training, setup))
        result = fit(peft_model, data, training, setup)
        collect = require("sharespace.tuner", "train").collect
        adapter = collect(peft_model, task, base=share.model.base, config=_pipeline(share))
    return Adapted(adapter, peft_model, result, counted, method.start)


def _pipeline(share: Share) -> dict[str, object]:
    """The entry that says that modules' names begin with a pipeline's components, if they do.

    All tasks of a Share model have the same modules, so the first one tells.
    """
    first = next(iter(share.model.tasks.values()), None)
    found = first.config.get(COMPONENTS) if first else None
    return {COMPONENTS: found} if found else {}


def _train_heads(
    peft_model: Any, data: Any, training: TrainingSettings, method: TaskMethod, setup: Setup | None
) -> None:
    """The heads alone, at dW = 0: first a probe, then everything (Kumar et al. 2022)."""
    trained = {n: p for n, p in peft_model.named_parameters() if p.requires_grad}
    held = [p for n, p in trained.items() if ".sharespace_" in n]
    for parameter in held:
        parameter.requires_grad_(False)
    rate = training.head_learning_rate or training.learning_rate
    short = replace(
        training, max_steps=method.head_steps, early_stopping_patience=None, learning_rate=rate
    )
    silent = replace(setup or Setup(), evaluation=None, metrics=None, callbacks=(), resume=None)
    fit(peft_model, data, short, silent)
    for parameter in held:
        parameter.requires_grad_(True)


def _nearest(
    model: nn.Module,
    share: Share,
    data: Any,
    training: TrainingSettings,
    task: str,
    method: TaskMethod,
    setup: Setup | None,
) -> str:
    """What "nearest" is for this task; the model is given back as it was."""
    plain = replace(method, start="zero", form="factors", p=1, phi=0, dropout=0.0)
    with released_on_failure(prepare(model, share, task, plain)) as probe:
        found = nearest_task(probe, share, data, training, setup)
    require("sharespace.tuner", "train").release(probe)
    return found


@contextmanager
def released_on_failure(peft_model: Any) -> Iterator[Any]:
    """Take PEFT's layers out of the base model where the block fails: nobody else could."""
    try:
        yield peft_model
    except BaseException:
        require("sharespace.tuner", "train").release(peft_model)
        raise
