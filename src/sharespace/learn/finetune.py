"""Train a known task on, where its data is at hand: its coefficients, with the bases frozen.

The paper's "Share-full" does so after the stream, for the coefficients of every task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from sharespace.learn.automatic import automatic_fit
from sharespace.learn.prepare import Trainable, check_base, count_trainable, released, wrapped
from sharespace.learn.settings import TrainingSettings
from sharespace.learn.training import Fit, Setup, evaluated
from sharespace.protocols import PeftModel
from sharespace.share import Share


@dataclass(frozen=True, eq=False)
class Finetuned:
    """A Share model in which one task was trained on."""

    share: Share
    """The bases and all other tasks are as they were, bit for bit."""
    model: Any
    """The ``PeftModel`` it was trained in; ``sharespace.release`` gives the base model back."""
    fit: Fit
    """What the training measured: see ``Fit``."""
    trainable: Trainable
    """How many numbers were trained."""
    kept: bool = True
    """False where what was there before was better (``keep="better"``): ``share`` is as it was."""


def load_task(
    model: nn.Module, share: Share, task: str, *, component: str | None = None
) -> PeftModel:
    """The base model as a ``PeftModel`` that runs a known task, its heads included.

    Args:
        model: the base model; PEFT puts its layers into it.
        share: knows the task.
        task: the task's name.
        component: component of a pipeline that the model is, such as ``"unet"``.

    Raises:
        TaskNotFoundError: there is no such task.
        MismatchError: the model is not the Share model's base, or a head does not fit.
    """
    from sharespace.tuner import ShareConfig, publish

    known = share.task(task)
    check_base(model, share, known.coefficients, component)
    prefix = f"{component}." if component else ""
    config = ShareConfig(
        share=publish(share.model),
        task=task,
        target_modules=[m.removeprefix(prefix) for m in known.coefficients],
        component=component,
    )
    return wrapped(model, config)


def finetune(
    model: nn.Module,
    share: Share,
    data: object,
    training: TrainingSettings,
    *,
    task: str,
    heads: bool = True,
    keep: Literal["last", "better"] = "last",
    component: str | None = None,
    setup: Setup | None = None,
) -> Finetuned:
    """Train a known task's coefficients further; its ledger starts a new segment.

    Args:
        model: the base model; PEFT puts its layers into it, and takes them out again where
            training fails.
        share: does not change; the result has a new one.
        data: the task's examples, as ``fit`` takes them.
        training: steps, learning rates and the like.
        task: the task's name.
        heads: train the task's heads, too; otherwise they stay as they are, bit for bit.
        keep: ``"better"`` keeps what was trained only where ``training.metric_for_best_model`` on
            ``setup.evaluation`` is better than before; ``"last"`` keeps it in any case.
        component: component of a pipeline that the model is, such as ``"unet"``.
        setup: evaluation, metrics, callbacks, another trainer.

    Returns:
        The Share model with the task as trained, and the model that it was trained in.

    Raises:
        TaskNotFoundError: there is no such task.
        MismatchError: the model is not the Share model's base.
        OptionError: ``keep="better"`` without evaluation data.
    """
    from sharespace.tuner import base_samples_of, kept_tensors, trained_coefficients

    setup = setup or Setup()
    with released(load_task(model, share, task, component=component)) as peft_model:
        _freeze(peft_model, heads)
        trainable = count_trainable(peft_model)
        before = evaluated(peft_model, training, setup) if keep == "better" else None
        fitted = automatic_fit(peft_model, data, training, setup)
        if before is not None and evaluated(peft_model, training, setup) >= before:
            return Finetuned(share, peft_model, fitted, trainable, kept=False)
        pairs = trained_coefficients(peft_model, "default", share.task(task))
        head_tensors = kept_tensors(peft_model, "default") if heads else {}
        samples = base_samples_of(peft_model, "default")
        retrained = share.retrained(task, pairs, head_tensors, base_samples=samples)
    return Finetuned(retrained, peft_model, fitted, trainable)


def _freeze(model: nn.Module, heads: bool) -> None:
    """Leave the coefficients trainable, and the heads where they are wanted."""
    for name, parameter in model.named_parameters():
        # An update that is stored per task is held as temporary directions: what is trained is the
        # coefficients that weigh them, as the task must stay in the space that it has.
        if "_temporary." in name or (not heads and "modules_to_save" in name):
            parameter.requires_grad_(False)
