"""Train a known task on, where its data is at hand: coefficients only, bases frozen.

"Share-full" of the paper: after the stream the coefficients of every task are trained once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from sharespace.extras import require
from sharespace.learn.adapt import released_on_failure
from sharespace.learn.prepare import Trainable, check_base, count_trainable
from sharespace.learn.settings import TrainingSettings
from sharespace.learn.training import Fit, Setup, evaluated, fit
from sharespace.share import Share


@dataclass(frozen=True, eq=False)
class Finetuned:
    """A Share model in which one task was trained on."""

    share: Share
    """The bases and all other tasks are as they were, bit for bit."""
    model: Any
    """The ``PeftModel`` it was trained in."""
    fit: Fit
    trainable: Trainable
    kept: bool = True
    """False where what was there before was better (``keep="better"``): ``share`` is as it was."""


def load_task(model: nn.Module, share: Share, task: str, *, component: str | None = None) -> Any:
    """The base model as a ``PeftModel`` that runs a known task, its heads included.

    Raises:
        TaskNotFoundError: there is no such task.
        MismatchError: the model is not the Share model's base, or a head does not fit.
    """
    peft, ours = require("peft", "train"), require("sharespace.tuner", "train")
    known = share.task(task)
    check_base(model, share, known.coefficients, component)
    prefix = f"{component}." if component else ""
    config = ours.ShareConfig(
        share=ours.publish(share.model),
        task=task,
        target_modules=[m.removeprefix(prefix) for m in known.coefficients],
        component=component,
    )
    return peft.get_peft_model(model, config)


def finetune(
    model: nn.Module,
    share: Share,
    data: Any,
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
        data: the task's examples.
        task: its name.
        heads: train the task's heads, too; otherwise they stay as they are, bit for bit.
        keep: ``"better"`` keeps what was trained only where ``training.metric_for_best_model`` on
            ``setup.evaluation`` is better than before.

    Raises:
        TaskNotFoundError: there is no such task.
        MismatchError: the model is not the Share model's base.
        OptionError: ``keep="better"`` without evaluation data.
    """
    setup = setup or Setup()
    ours = require("sharespace.tuner", "train")
    with released_on_failure(load_task(model, share, task, component=component)) as peft_model:
        _freeze(peft_model, heads)
        counted = count_trainable(peft_model)
        before = evaluated(peft_model, training, setup) if keep == "better" else None
        result = fit(peft_model, data, training, setup)
        if before is not None and evaluated(peft_model, training, setup) >= before:
            return Finetuned(share, peft_model, result, counted, kept=False)
        pairs = ours.trained_coefficients(peft_model, "default", share.task(task))
        kept = ours.kept_tensors(peft_model, "default") if heads else {}
        changed = share.retrained(task, pairs, kept)
    return Finetuned(changed, peft_model, result, counted)


def _freeze(model: nn.Module, heads: bool) -> None:
    """Leave the coefficients trainable, and the heads where they are wanted."""
    for name, parameter in model.named_parameters():
        # A private update is held as temporary directions: not those, but what weighs them.
        if "_temporary." in name or (not heads and "modules_to_save" in name):
            parameter.requires_grad_(False)
