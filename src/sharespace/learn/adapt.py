"""Learn a new task from data inside a Share model's subspace (method.md, step 2).

No earlier task's data, coefficients or head is read or changed, but for the cores that ``start``
names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from sharespace.errors import OptionError, TaskExistsError
from sharespace.extras import require
from sharespace.learn.similar import nearest_task
from sharespace.learn.training import Fit, Setup, Training, fit
from sharespace.share import Share
from sharespace.subspace.adapter import Adapter


@dataclass(frozen=True)
class Method:
    """How a new task is parametrised."""

    p: int = 8
    """Pseudo-rank."""
    phi: int = 0
    """Temporary directions a side; 0 trains coefficients only."""
    start: str = "zero"
    """``"zero"`` (dW = 0), ``"mean"`` (of the known tasks' cores), ``"nearest"`` (the known task
    whose core lowers this task's loss fastest), or a known task's name."""
    heads: Sequence[str] = ("classifier",)
    """Modules that are trained whole."""
    dropout: float = 0.0
    seed: int = 0
    """Of the random start."""
    task_type: str | None = None
    """PEFT's name for the kind of task; None: the model is wrapped without changes."""
    component: str | None = None
    """Part of a pipeline that the model is, such as ``"unet"``."""


@dataclass(frozen=True)
class Trainable:
    """Numbers that training changes."""

    coefficients: int
    temporary: int
    heads: int

    @property
    def total(self) -> int:
        return self.coefficients + self.temporary + self.heads


@dataclass(frozen=True, eq=False)
class Adapted:
    """A task that was learned, and not merged yet."""

    adapter: Adapter
    """Temporary directions and heads included; ``Share.merge`` takes it."""
    model: Any
    """The ``PeftModel`` it was trained in; ``sharespace.nn.release`` gives the base model back."""
    fit: Fit
    trainable: Trainable
    start: str
    """Where it started: what ``"nearest"`` chose."""


def prepare(model: nn.Module, share: Share, task: str, method: Method) -> Any:
    """A ``PeftModel`` over the base model with the new task, ready for any training loop.

    Raises:
        TaskExistsError: the Share model knows the task (``finetune`` trains it on).
        MismatchError: the model is not the Share model's base.
        OptionError: p, phi or dropout is out of range, or a head is not in the model.
    """
    if task in share.tasks:
        raise TaskExistsError(
            f"task {task!r}",
            "the Share model knows it already",
            "finetune trains a known task on; remove it first to learn it anew",
        )
    peft, config_class = require("peft", "train"), require("sharespace.nn", "train").ShareConfig
    _check_heads(model, share, method.heads)
    config = config_class(
        share=require("sharespace.nn", "train").publish(share.model),
        task=task,
        p=method.p,
        phi=method.phi,
        start=method.start,
        modules_to_save=list(method.heads) or None,
        dropout=method.dropout,
        seed=method.seed,
        task_type=method.task_type,
        component=method.component,
    )
    return peft.get_peft_model(model, config)


def adapt(
    model: nn.Module,
    share: Share,
    data: Any,
    training: Training,
    *,
    task: str,
    method: Method | None = None,
    setup: Setup | None = None,
) -> Adapted:
    """Train a new task's coefficients, temporary directions and heads; the bases stay frozen.

    Args:
        model: the base model; PEFT puts its layers into it.
        share: does not change; ``share.merge(result.adapter)`` absorbs the task.
        data: examples for Trainer.
        training: steps, learning rate and the like.
        task: its name.
        method: pseudo-rank, temporary directions, start, heads.
        setup: evaluation, metrics, callbacks, another trainer.

    Raises:
        TaskExistsError, MismatchError, OptionError: see ``prepare``.
        MissingExtraError: PEFT, transformers or accelerate is not installed.
    """
    method = method or Method()
    if method.start == "nearest":
        found = nearest_task(model, share, data, training, method.heads, setup)
        method = replace(method, start=found)
    peft_model = prepare(model, share, task, method)
    counted = count_trainable(peft_model)
    result = fit(peft_model, data, training, setup)
    collect = require("sharespace.nn", "train").collect
    adapter = collect(peft_model, task, base=share.model.base)
    return Adapted(adapter, peft_model, result, counted, method.start)


def merge_from(
    share: Share,
    model: Any,
    *,
    task: str | None = None,
    adapter: str = "default",
    k: int | None = None,
) -> Share:
    """Merge what was trained in a ``PeftModel`` into the Share model (method.md, step 3).

    Args:
        model: made with ``ShareConfig``, whatever trained it.
        task: its name; None: the configuration's.
        adapter: PEFT's name for it.
        k: a new cap for every layer; None: the caps that it has.

    Raises:
        OptionError: neither the argument nor the configuration names the task.
        TaskExistsError: the name is taken.
    """
    name = task or model.peft_config[adapter].task
    if not name:
        raise OptionError("merge_from", "the task has no name", "Give task=NAME")
    collect = require("sharespace.nn", "train").collect
    return share.merge(collect(model, name, adapter=adapter, base=share.model.base), k=k)


def count_trainable(model: nn.Module) -> Trainable:
    """Numbers that require a gradient, by kind."""
    counts = {"coefficients": 0, "temporary": 0, "heads": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[_kind(name)] += parameter.numel()
    return Trainable(**counts)


def _kind(name: str) -> str:
    if "_coefficients." in name:
        return "coefficients"
    return "temporary" if "_temporary." in name else "heads"


def _check_heads(model: nn.Module, share: Share, heads: Sequence[str]) -> None:
    known = {name for name, _ in model.named_modules()}
    for name in heads:
        if name not in known:
            raise OptionError(f"head {name!r}", "not in this model", "Name its module in heads")
        if name in share.model.layers:
            raise OptionError(f"head {name!r}", "is in the subspace", "Leave it out of heads")
