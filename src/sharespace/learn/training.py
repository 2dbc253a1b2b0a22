"""Training with the Trainer of transformers, or any subclass of it.

Also the conditions that a training is reproduced under: a seed, silence and one thread for the time
of a block, with everything as it was afterwards.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Protocol, cast

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from sharespace.errors import OptionError
from sharespace.extras import require
from sharespace.learn.settings import TrainingSettings
from sharespace.protocols import TrainerLike


class EvalPrediction(Protocol):
    """``transformers.EvalPrediction``: what a model said to the evaluation data, as arrays."""

    predictions: np.ndarray
    label_ids: np.ndarray


Metrics = Callable[[EvalPrediction], Mapping[str, float]]
"""Trainer's ``compute_metrics``: predictions -> name of a measure -> value."""


@dataclass(frozen=True)
class RateTrial:
    """One learning rate that was tried."""

    learning_rate: float
    steps: int
    """Of its whole schedule."""
    loss: float
    """Mean loss of the held-out examples at its end; infinite where it was not finite."""
    standard_error: float
    """Of that mean, over the held-out examples."""


@dataclass(frozen=True)
class RateChoice:
    """What ``learning_rate="auto"`` chose, and by what."""

    learning_rate: float
    """Of all that is trained but the heads, which have ``TrainingSettings.head_rate``."""
    steps: int
    """Of the training's schedule."""
    stop_after: int
    """Step at which the training ends: ``steps``, or earlier where that was better."""
    held_out: int
    """Examples that judged it: all of them in turn where ``folds`` is above 1."""
    folds: int
    """Parts of the cross-validation; 1: one split."""
    loss: float
    """Mean loss of the held-out examples at the chosen rate and step."""
    standard_error: float
    """Of that mean, over the held-out examples."""
    untrained: float
    """Their mean loss before anything was trained."""
    cost: float = 0.0
    """Steps that choosing took; an example that only judges counts a third of one in a step."""
    seconds: float = 0.0
    """Time that choosing took."""
    learned: bool = True
    """False: no trial beat the untrained state by two standard errors, so they said nothing of the
    rate, and the usual one was taken."""
    trials: tuple[RateTrial, ...] = ()
    """All rates that were tried, in order."""

    def told(self) -> str:
        """What was chosen and by what, in one line."""
        how = f"{self.folds}-fold cross-validation" if self.folds > 1 else "held-out examples"
        stop = f", stopped after {self.stop_after}" if self.stop_after < self.steps else ""
        origin = "chosen from" if self.learned else "the usual one, as nothing was learned in"
        return (
            f"learning rate {self.learning_rate:g}, {self.steps} steps{stop}, {origin} "
            f"{len(self.trials)} trials by {how} ({self.held_out} examples): loss "
            f"{self.loss:.4f} ± {self.standard_error:.4f}, {self.untrained:.4f} untrained"
        )


@dataclass(frozen=True)
class Fit:
    """What a training run measured."""

    loss: float
    """Mean training loss over all steps."""
    seconds: float
    """Time that the steps took, without what came before the first."""
    steps: int
    """The last step's number; less than asked for after an early stop."""
    history: tuple[Mapping[str, float], ...] = ()
    """What Trainer logged, in order; evaluations have keys that start with ``eval_``."""
    choice: RateChoice | None = None
    """What ``learning_rate="auto"`` chose; None where the rate was given."""


@dataclass(frozen=True, eq=False)
class Setup:
    """Everything else that a Trainer takes; the defaults are Trainer's own."""

    evaluation: object = None
    """Dataset to evaluate on, every ``TrainingSettings.eval_steps`` steps or after each epoch."""
    metrics: Metrics | None = None
    """What is measured on the evaluation data beside the loss."""
    collator: Callable[..., Mapping[str, object]] | None = None
    """Examples -> a batch; None: Trainer's own choice."""
    callbacks: Sequence[object] = ()
    """``TrainerCallback`` objects that the Trainer calls."""
    trainer: type | None = None
    """A subclass of ``transformers.Trainer``, such as TRL's ``SFTTrainer``."""
    arguments: type | None = None
    """The class of its arguments, such as TRL's ``SFTConfig``."""
    options: Mapping[str, object] = field(default_factory=dict)
    """More arguments of the trainer, such as ``processing_class``."""
    resume: str | os.PathLike[str] | None = None
    """A checkpoint folder that Trainer wrote, to go on from."""


def fit(
    model: nn.Module,
    dataset: object,
    training: TrainingSettings,
    setup: Setup | None = None,
) -> Fit:
    """Train what requires a gradient, in place.

    Nothing is printed, and nothing is kept on disk unless ``training.arguments`` names an
    ``output_dir``. Batch norms whose parameters are frozen keep their statistics, which belong to
    the base model.

    Args:
        model: returns a loss when called with the examples' fields.
        dataset: of dictionaries of tensors, named as the arguments of the model's forward, or
            whatever ``setup.trainer`` takes.
        training: steps, learning rates, batch sizes and the like.
        setup: evaluation, metrics, callbacks, another trainer.

    Returns:
        The mean loss, the time and the steps of the training, and all that Trainer logged.

    Raises:
        MissingExtraError: transformers or accelerate is not installed.
        OptionError: nothing requires a gradient, early stopping has nothing to decide by, FSDP
            would wrap the model so that it cannot be used afterwards, or the learning rate is
            ``"auto"``, which ``adapt`` and ``finetune`` choose.
    """
    return train(model, dataset, training, setup or Setup())


def train(
    model: nn.Module,
    dataset: object,
    training: TrainingSettings,
    setup: Setup,
    prepare: Callable[[TrainerLike], None] | None = None,
) -> Fit:
    """Train as ``fit`` says, with a Trainer that is prepared first.

    Args:
        model, dataset, training, setup: as for ``fit``.
        prepare: is given the Trainer before it trains.

    Returns:
        What ``fit`` returns.

    Raises:
        MissingExtraError: transformers or accelerate is not installed.
        OptionError: see ``fit``.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise OptionError("model", "nothing in it requires a gradient", "Name heads, or unfreeze")
    resume = os.fspath(setup.resume) if setup.resume is not None else None
    with trainer_for(model, dataset, training, setup) as trainer, fixed_statistics(model):
        _refuse_cut_for_good(trainer)
        if prepare is not None:
            prepare(trainer)
        result = trainer.train(resume_from_checkpoint=resume)
    model.eval()
    history = tuple(dict(entry) for entry in trainer.state.log_history)
    return Fit(result.training_loss, result.metrics["train_runtime"], result.global_step, history)


def _refuse_cut_for_good(trainer: TrainerLike) -> None:
    """FSDP (version 1) and ZeRO-3 leave a model of parts; ``fully_shard`` gives parts that can be
    gathered from the model itself.

    Raises:
        OptionError: the Trainer would do so.
    """
    accelerator = getattr(trainer, "accelerator", None)
    plugin = getattr(getattr(accelerator, "state", None), "deepspeed_plugin", None)
    first = getattr(trainer, "is_fsdp_enabled", False) and not getattr(
        accelerator, "is_fsdp2", False
    )
    if first or getattr(plugin, "zero_stage", None) == 3:
        name = "version 1 of FSDP" if first else "DeepSpeed ZeRO-3"
        raise OptionError(
            name,
            "it leaves a model whose parameters are parts, from which the task cannot be read",
            "Use version 2 of FSDP (fsdp_config version 2), or get_peft_model with ShareConfig, a "
            "Trainer of your own and MergeIntoShare",
        )


def evaluated(model: nn.Module, training: TrainingSettings, setup: Setup) -> float:
    """``training.metric_for_best_model`` on ``setup.evaluation``, turned so that smaller is better.

    Raises:
        OptionError: there is no evaluation data, or nothing measures it.
    """
    name = training.metric_for_best_model.removeprefix("eval_")
    if setup.evaluation is None:
        raise OptionError("evaluation", "there is no data for it", "Give Setup(evaluation=...)")
    without = replace(training, early_stopping_patience=None)
    with trainer_for(model, None, without, setup) as trainer:
        measured = trainer.evaluate()
    if f"eval_{name}" not in measured:
        raise OptionError(
            f"metric_for_best_model={name!r}", "nothing measures it", "Give Setup(metrics=...)"
        )
    value = float(measured[f"eval_{name}"])
    greater = training.greater_is_better
    # TrainingArguments decides in the same way where the direction is not given.
    greater = not name.endswith("loss") if greater is None else greater
    return -value if greater else value


@contextmanager
def trainer_for(
    model: nn.Module, dataset: object, training: TrainingSettings, setup: Setup
) -> Iterator[TrainerLike]:
    """The Trainer that ``fit`` trains with; its folder is gone after the block.

    Raises:
        MissingExtraError, OptionError: see ``fit``.
    """
    # transformers itself only says so when the Trainer is made, without naming our extra.
    require("accelerate", "train")
    transformers = require("transformers", "train")
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(transformers, model, dataset, training, setup, folder)
        # With progress bars disabled, Trainer prints every log entry instead.
        trainer.remove_callback(transformers.PrinterCallback)
        yield trainer


@contextmanager
def fixed_statistics(model: nn.Module) -> Iterator[None]:
    """Frozen batch norms work as in evaluation, though Trainer puts the model in training mode.

    Before every forward pass, not once: Trainer calls ``model.train()`` before each step.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    frozen = [m for m in norms if not any(p.requires_grad for p in m.parameters())]
    handles = [m.register_forward_pre_hook(lambda norm, _: norm.eval() and None) for m in frozen]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _trainer(
    transformers: ModuleType,
    model: nn.Module,
    dataset: object,
    training: TrainingSettings,
    setup: Setup,
    folder: str,
) -> TrainerLike:
    patience, threshold = training.early_stopping_patience, training.early_stopping_threshold
    callbacks = list(setup.callbacks)
    if patience is not None:
        callbacks.append(transformers.EarlyStoppingCallback(patience, threshold))
    trainer_class = cast(_TrainerClass, setup.trainer or transformers.Trainer)
    arguments = (setup.arguments or transformers.TrainingArguments)(
        **{
            "output_dir": folder,
            # Trainer's default, True, warns on every machine without an accelerator.
            "dataloader_pin_memory": False,
            "save_strategy": "no",
            "disable_tqdm": True,
            **_evaluating(training, setup),
            **training.trainer_arguments(),
        }
    )
    return trainer_class(
        model=model,
        args=arguments,
        optimizers=(_optimizer(trainer_class, model, training, arguments), None),
        train_dataset=dataset,
        eval_dataset=setup.evaluation,
        compute_metrics=setup.metrics,
        data_collator=setup.collator,
        callbacks=callbacks,
        **setup.options,
    )


class _TrainerClass(Protocol):
    """``transformers.Trainer`` itself or a class below it: it makes a trainer, and knows the
    optimizer that the arguments name."""

    def __call__(self, **arguments: object) -> TrainerLike: ...

    def get_optimizer_cls_and_kwargs(
        self, args: object, model: nn.Module
    ) -> tuple[Callable[..., Optimizer], dict[str, object]]:
        """The optimizer's class and its options, without parameters."""


def _optimizer(
    trainer_class: _TrainerClass, model: nn.Module, training: TrainingSettings, arguments: object
) -> Optimizer | None:
    """Trainer's own optimizer with a group for the heads; None: let Trainer make it."""
    if training.head_learning_rate is None:
        return None
    make, options = trainer_class.get_optimizer_cls_and_kwargs(arguments, model)
    rates = {False: training.rate, True: training.head_learning_rate}
    groups: list[dict[str, object]] = []
    # Heads last: the optimizer states of checkpoints hold the groups in this order.
    for in_head, rate in rates.items():
        # PEFT keeps what is trained whole, such as a head, below this name.
        parameters = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and (".modules_to_save." in name) == in_head
        ]
        if parameters:
            decay = training.weight_decay
            groups.append({"params": parameters, "lr": rate, "weight_decay": decay})
    return make(groups, **options)


def _evaluating(training: TrainingSettings, setup: Setup) -> dict[str, object]:
    """Arguments of evaluation and early stopping.

    Raises:
        OptionError: there is nothing to decide by.
    """
    _check_patience(training, setup)
    if setup.evaluation is None:
        return {}
    every, strategy = training.eval_steps, "steps" if training.eval_steps else "epoch"
    arguments: dict[str, object] = {"eval_strategy": strategy, "eval_steps": every}
    if training.early_stopping_patience is not None:
        # The best state can only be taken back where each evaluation leaves a checkpoint.
        arguments |= {
            "save_strategy": strategy,
            **({"save_steps": every} if every else {}),
            "save_total_limit": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": training.metric_for_best_model,
            "greater_is_better": training.greater_is_better,
        }
    return arguments


def _check_patience(training: TrainingSettings, setup: Setup) -> None:
    if training.early_stopping_patience is None:
        return
    what = f"early_stopping_patience={training.early_stopping_patience}"
    best = training.metric_for_best_model
    if setup.evaluation is None:
        raise OptionError(what, "there is no evaluation data", "Give Setup(evaluation=...)")
    if best.removeprefix("eval_") != "loss" and setup.metrics is None:
        raise OptionError(
            what,
            f"nothing measures {best!r}",
            "Give Setup(metrics=...), or metric_for_best_model='loss'",
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Everything random in the block depends on the seed alone, not on what ran before.

    The generators of Python, NumPy and torch go on afterwards as if the block had not been.
    """
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)  # NumPy takes 32 bits, the others 64.
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextmanager
def quiet() -> Iterator[None]:
    """Without log lines, warnings and progress bars of transformers and, once it is imported,
    ``datasets``; without requests that count a download."""
    bars = require("transformers.utils.logging", "train")
    disabled, shown = logging.root.manager.disable, bars.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    bars.disable_progress_bar()
    try:
        with warnings.catch_warnings(), _quiet_datasets():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if shown:
            bars.enable_progress_bar()


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    datasets = sys.modules.get("datasets")
    if datasets is None:
        yield
        return
    logger, config = logging.getLogger("datasets"), datasets.config
    level, counts = logger.level, config.HF_UPDATE_DOWNLOAD_COUNTS
    bars = not datasets.are_progress_bars_disabled()
    # What it logs as an error it raises too.
    logger.setLevel(logging.CRITICAL)
    # The request would go to the Hub for local files, too.
    config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        if bars:
            datasets.enable_progress_bars()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch for the time of the block.

    Small matrices gain nothing from a second thread, and sums come in one order then: figures do
    not depend on the number of cores, and a busy machine does not slow them down tenfold.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
