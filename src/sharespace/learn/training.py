"""Training with the Trainer of transformers, or any subclass of it.

Seeds, silence and one thread for a block; all as it was afterwards.
"""

from __future__ import annotations

import logging
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from sharespace.errors import OptionError
from sharespace.extras import require

Metrics = Callable[[Any], Mapping[str, float]]
"""Trainer's ``compute_metrics``: an ``EvalPrediction`` -> name -> value."""


@dataclass(frozen=True)
class Training:
    """How to train: AdamW, cosine decay to zero after a linear warm-up.

    Raises:
        OptionError: a value is out of range.
    """

    steps: int
    learning_rate: float
    head_learning_rate: float | None = None
    """Of the modules that are trained whole; None: the same. Coefficients want rates that are far
    too high for a head."""
    batch_size: int = 64
    weight_decay: float = 0.01
    warmup: float = 0.06
    """Part of the steps."""
    seed: int = 0
    """Of the order of the examples and of dropout."""
    cpu: bool = False
    """Stay on the CPU even where there is an accelerator."""
    patience: int | None = None
    """Stop after so many evaluations without a better one, and keep the best weights; needs
    ``Setup.evaluation``."""
    best: str = "loss"
    """With ``patience``: which evaluation measure tells what is better, for example
    ``"accuracy"`` where ``Setup.metrics`` returns one."""
    smaller_is_better: bool | None = None
    """Of that measure; None: True where its name ends in ``loss``."""
    threshold: float = 0.0
    """How much better counts as better, with ``patience``."""
    evaluate_every: int = 50
    """Steps between evaluations, where there is evaluation data."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """More of ``TrainingArguments``, such as ``report_to``, ``bf16`` or
    ``gradient_accumulation_steps``; they win over the fields above."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("evaluate_every", 1)):
            _at_least(name, getattr(self, name), least)
        if self.patience is not None:
            _at_least("patience", self.patience, 1)
        for name in ("learning_rate", "head_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and not rate > 0:
                raise OptionError(f"{name}={rate}", "must be above 0", "Change it")
        if not 0 <= self.warmup <= 1:
            raise OptionError(f"warmup={self.warmup}", "is a part of the steps", "Give 0 to 1")


@dataclass(frozen=True)
class Fit:
    """What a training run measured."""

    loss: float
    """Mean training loss over all steps."""
    seconds: float
    steps: int
    """The last step's number; less than asked for after an early stop."""
    history: tuple[Mapping[str, float], ...] = ()
    """What Trainer logged, in order; evaluations have keys that start with ``eval_``."""


@dataclass(frozen=True, eq=False)
class Setup:
    """Everything else that a Trainer takes; the defaults are Trainer's own."""

    evaluation: Any = None
    """Dataset to evaluate on, every ``Training.evaluate_every`` steps and at the end."""
    metrics: Metrics | None = None
    collator: Any = None
    callbacks: Sequence[Any] = ()
    """``TrainerCallback`` objects."""
    trainer: type | None = None
    """A subclass of ``transformers.Trainer``, such as TRL's ``SFTTrainer``."""
    arguments: type | None = None
    """The class of its arguments, such as TRL's ``SFTConfig``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of the trainer, such as ``processing_class``."""
    resume: str | os.PathLike[str] | None = None
    """A checkpoint folder that Trainer wrote, to go on from."""


def fit(
    model: nn.Module, dataset: Dataset[Any] | Any, training: Training, setup: Setup | None = None
) -> Fit:
    """Train what requires a gradient, in place; nothing is printed, and nothing is kept on disk
    unless ``training.arguments`` names an ``output_dir``.

    Batch norms whose parameters are frozen keep their statistics, which belong to the base model.

    Args:
        model: returns a loss when called with the examples' fields.
        dataset: of dictionaries of tensors, named as the arguments of the model's forward, or
            whatever ``setup.trainer`` takes.
        training: the numbers.
        setup: evaluation, metrics, callbacks, another trainer.

    Raises:
        MissingExtraError: transformers or accelerate is not installed.
        OptionError: nothing requires a gradient, or ``patience`` has nothing to decide by.
    """
    setup = setup or Setup()
    if not any(p.requires_grad for p in model.parameters()):
        raise OptionError("model", "nothing in it requires a gradient", "Name heads, or unfreeze")
    resume = os.fspath(setup.resume) if setup.resume is not None else None
    with trainer_for(model, dataset, training, setup) as trainer, fixed_statistics(model):
        result = trainer.train(resume_from_checkpoint=resume)
    model.eval()
    history = tuple(dict(entry) for entry in trainer.state.log_history)
    return Fit(result.training_loss, result.metrics["train_runtime"], result.global_step, history)


def evaluated(model: nn.Module, training: Training, setup: Setup) -> float:
    """``training.best`` on ``setup.evaluation``, turned so that smaller is better.

    Raises:
        OptionError: there is no evaluation data, or nothing measures ``training.best``.
    """
    name = training.best.removeprefix("eval_")
    if setup.evaluation is None:
        raise OptionError("evaluation", "there is no data for it", "Give Setup(evaluation=...)")
    smaller = training.smaller_is_better
    with trainer_for(model, None, replace(training, patience=None), setup) as trainer:
        found = trainer.evaluate()
    if f"eval_{name}" not in found:
        raise OptionError(f"best={name!r}", "nothing measures it", "Give Setup(metrics=...)")
    value = float(found[f"eval_{name}"])
    return value if smaller or (smaller is None and name.endswith("loss")) else -value


@contextmanager
def trainer_for(model: nn.Module, dataset: Any, training: Training, setup: Setup) -> Iterator[Any]:
    """The Trainer that ``fit`` trains with; its folder is gone after the block.

    Raises:
        MissingExtraError, OptionError: see ``fit``.
    """
    require("accelerate", "train")
    transformers = require("transformers", "train")
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(transformers, model, dataset, training, setup, folder)
        trainer.remove_callback(transformers.PrinterCallback)
        yield trainer


@contextmanager
def fixed_statistics(model: nn.Module) -> Iterator[None]:
    """Frozen batch norms work as in evaluation, though Trainer puts the model in training mode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    frozen = [m for m in norms if not any(p.requires_grad for p in m.parameters())]
    handles = [m.register_forward_pre_hook(lambda norm, _: norm.eval() and None) for m in frozen]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _trainer(
    transformers: Any,
    model: nn.Module,
    dataset: Any,
    training: Training,
    setup: Setup,
    folder: str,
) -> Any:
    chosen = {**_arguments(training, folder), **_evaluating(training, setup), **training.arguments}
    callbacks = list(setup.callbacks)
    if training.patience is not None:
        callbacks.append(transformers.EarlyStoppingCallback(training.patience, training.threshold))
    make = cast(Any, setup.trainer or transformers.Trainer)
    make_arguments = cast(Any, setup.arguments or transformers.TrainingArguments)
    arguments = make_arguments(**chosen)
    return make(
        model=model,
        args=arguments,
        optimizers=(_optimizer(make, model, training, arguments), None),
        train_dataset=dataset,
        eval_dataset=setup.evaluation,
        compute_metrics=setup.metrics,
        data_collator=setup.collator,
        callbacks=callbacks,
        **setup.options,
    )


def _optimizer(trainer: Any, model: nn.Module, training: Training, arguments: Any) -> Any:
    """Trainer's own optimizer with a group for the heads; None: let Trainer make it."""
    if training.head_learning_rate is None:
        return None
    make, options = trainer.get_optimizer_cls_and_kwargs(arguments, model)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    heads = [p for n, p in trained.items() if ".modules_to_save." in n]
    others = [p for n, p in trained.items() if ".modules_to_save." not in n]
    groups = ((others, training.learning_rate), (heads, training.head_learning_rate))
    decay = arguments.weight_decay
    return make(
        [{"params": ps, "lr": rate, "weight_decay": decay} for ps, rate in groups if ps], **options
    )


def _arguments(training: Training, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": training.steps,
        "learning_rate": training.learning_rate,
        "per_device_train_batch_size": training.batch_size,
        "per_device_eval_batch_size": training.batch_size,
        "weight_decay": training.weight_decay,
        "warmup_steps": round(training.warmup * training.steps),
        "lr_scheduler_type": "cosine",
        "seed": training.seed,
        "use_cpu": training.cpu,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _evaluating(training: Training, setup: Setup) -> dict[str, Any]:
    """Arguments of evaluation and early stopping.

    Raises:
        OptionError: there is nothing to decide by.
    """
    _check_patience(training, setup)
    if setup.evaluation is None:
        return {}
    found: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": training.evaluate_every}
    if training.patience is not None:
        smaller = training.smaller_is_better
        found |= {
            "save_strategy": "steps",
            "save_steps": training.evaluate_every,
            "save_total_limit": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": training.best,
            "greater_is_better": None if smaller is None else not smaller,
        }
    return found


def _check_patience(training: Training, setup: Setup) -> None:
    if training.patience is None:
        return
    what = f"patience={training.patience}"
    if setup.evaluation is None:
        raise OptionError(what, "there is no evaluation data", "Give Setup(evaluation=...)")
    if training.best.removeprefix("eval_") != "loss" and setup.metrics is None:
        raise OptionError(
            what, f"nothing measures {training.best!r}", "Give Setup(metrics=...), or best='loss'"
        )


def _at_least(name: str, value: float, least: int) -> None:
    if value < least:
        raise OptionError(f"{name}={value}", f"must be at least {least}", "Change it")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Everything random in the block depends on the seed alone, not on what ran before."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextmanager
def quiet() -> Iterator[None]:
    """Without log lines, warnings and bars of the libraries below."""
    bars = require("transformers.utils.logging", "train")
    disabled, shown = logging.root.manager.disable, bars.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    bars.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if shown:
            bars.enable_progress_bar()


@contextmanager
def one_thread() -> Iterator[None]:
    """Small matrices gain nothing from a second thread, and sums come in one order then: figures
    do not depend on the number of cores, and a busy machine does not slow them down tenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
