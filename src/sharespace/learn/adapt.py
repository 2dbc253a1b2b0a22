"""Learn a new task from data inside a Share model's subspace.

See docs/method.md, "Step 2: learn a new task". No earlier task is changed; coefficients and heads
of those that the new one may start from are read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from sharespace.formats.lora_config import COMPONENTS
from sharespace.learn.automatic import automatic_fit
from sharespace.learn.directions import gradient_directions, place_directions
from sharespace.learn.prepare import Trainable, count_trainable, released, with_mixture
from sharespace.learn.settings import TaskMethod, TrainingSettings
from sharespace.learn.starts import StartChoice, choose_start, train_heads
from sharespace.learn.training import Fit, Setup
from sharespace.share import Share
from sharespace.subspace.adapter import Adapter

_LOG = logging.getLogger(__name__)


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
    """Where it started: ``"zero"``, ``"mean"`` or a known task."""
    choice: StartChoice
    """Why it started there, the heads that were copied, and the tasks that were mixed in."""


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
        method: pseudo-rank, temporary directions, start, heads; None: the defaults, by which
            everything is chosen from the base model, the Share model and the data.
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
    from sharespace.tuner.modules import fill_heads

    method = method or TaskMethod()
    setup = setup or Setup()
    choice = choose_start(model, share, data, training, task=task, method=method, setup=setup)
    _LOG.info("task %r: %s", task, choice)
    started = replace(method, start=choice.start)
    with released(with_mixture(model, share, task, started, choice.mixture)) as peft_model:
        trainable = count_trainable(peft_model)
        if choice.copies_heads:
            fill_heads(peft_model, "default", share.task(choice.start))
        elif trainable.heads and method.head_steps != 0:
            train_heads(peft_model, data, training, method, setup)
        if method.uses_gradient:
            place_directions(peft_model, gradient_directions(peft_model, data, training, setup))
        fitted = automatic_fit(peft_model, data, training, setup)
        adapter = collect(peft_model, task, base=share.model.base, config=_pipeline(share))
    return Adapted(adapter, peft_model, fitted, trainable, choice.start, choice)


def _pipeline(share: Share) -> dict[str, object]:
    """The entry that says that modules' names begin with a pipeline's components, if they do.

    All tasks of a Share model have the same modules, so the first one tells.
    """
    first = next(iter(share.model.tasks.values()), None)
    components = first.config.get(COMPONENTS) if first else None
    return {COMPONENTS: components} if components else {}
