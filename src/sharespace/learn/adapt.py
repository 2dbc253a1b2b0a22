"""Learn a new task from data inside a Share model's subspace.

See docs/method.md, "Step 2: learn a new task". No earlier task's data, coefficients or head is read
or changed, but for the cores that ``start`` names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from sharespace.formats.lora_config import COMPONENTS
from sharespace.learn.automatic import automatic_fit
from sharespace.learn.directions import gradient_directions, nearest_task, place_directions
from sharespace.learn.prepare import Trainable, count_trainable, prepare
from sharespace.learn.settings import TaskMethod, TrainingSettings
from sharespace.learn.training import Fit, Setup, fit
from sharespace.protocols import PeftModel
from sharespace.share import Share
from sharespace.subspace.adapter import Adapter


@dataclass(frozen=True, eq=False)
class Adapted:
    """A task that was learned, and not merged yet."""

    adapter: Adapter
    """Temporary directions and heads included; ``Share.merge`` takes it."""
    model: Any
    """The ``PeftModel`` it was trained in; ``sharespace.release`` gives the base model back."""
    fit: Fit
    """What the training measured, head steps left out."""
    trainable: Trainable
    """How many numbers were trained."""
    start: str
    """Where it started; for ``start="nearest"`` the task that was chosen, or ``"zero"``."""


def adapt(
    model: nn.Module,
    share: Share,
    data: object,
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
        data: examples, as ``fit`` takes them.
        training: steps, learning rates and the like.
        task: the new task's name.
        method: pseudo-rank, temporary directions, start, heads; None: the defaults.
        setup: evaluation, metrics, callbacks, another trainer.

    Returns:
        The task as an adapter, and the model that it was trained in.

    Raises:
        TaskExistsError: the Share model knows the task.
        TaskNotFoundError: ``method.start`` names no known task.
        MismatchError: the model is not the Share model's base, or has PEFT layers already.
        OptionError: a head is not in the model, or early stopping has nothing to decide by.
        MissingExtraError: PEFT, transformers or accelerate is not installed.
    """
    from sharespace.tuner import collect

    method = method or TaskMethod()
    setup = setup or Setup()
    if method.start == "nearest":
        plain = replace(method, start="zero", form="factors", p=1, phi=0, dropout=0.0)
        with released(prepare(model, share, task, plain), always=True) as probe:
            method = replace(method, start=nearest_task(probe, share, data, training, setup))
    with released(prepare(model, share, task, method)) as peft_model:
        trainable = count_trainable(peft_model)
        if method.head_steps:
            _train_heads(peft_model, data, training, method, setup)
        if method.directions == "gradient":
            place_directions(peft_model, gradient_directions(peft_model, data, training, setup))
        fitted = automatic_fit(peft_model, data, training, setup)
        adapter = collect(peft_model, task, base=share.model.base, config=_pipeline(share))
    return Adapted(adapter, peft_model, fitted, trainable, method.start)


def _pipeline(share: Share) -> dict[str, object]:
    """The entry that says that modules' names begin with a pipeline's components, if they do.

    All tasks of a Share model have the same modules, so the first one tells.
    """
    first = next(iter(share.model.tasks.values()), None)
    components = first.config.get(COMPONENTS) if first else None
    return {COMPONENTS: components} if components else {}


def _train_heads(
    peft_model: PeftModel,
    data: object,
    training: TrainingSettings,
    method: TaskMethod,
    setup: Setup,
) -> None:
    """The heads alone, at dW = 0, as a linear probe.

    A random head's gradient would distort what it is given (Kumar et al. 2022,
    arXiv 2202.10054); here it would choose the directions, too.
    """
    held = [p for n, p in peft_model.named_parameters() if p.requires_grad and ".sharespace_" in n]
    for parameter in held:
        parameter.requires_grad_(False)
    short = replace(
        training,
        max_steps=method.head_steps,
        early_stopping_patience=None,
        learning_rate=training.head_rate,
    )
    silent = replace(setup, evaluation=None, metrics=None, callbacks=(), resume=None)
    fit(peft_model, data, short, silent)
    for parameter in held:
        parameter.requires_grad_(True)


@contextmanager
def released(peft_model: PeftModel, *, always: bool = False) -> Iterator[PeftModel]:
    """Take PEFT's layers out of the base model where the block fails, or always.

    PEFT puts its layers into the model that it is given: after a failure the caller has that model
    and nothing to release it with.
    """
    from sharespace.tuner import release

    try:
        yield peft_model
    except BaseException:
        release(peft_model)
        raise
    if always:
        release(peft_model)
