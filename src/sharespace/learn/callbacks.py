"""Callbacks for any Trainer: choose directions and the learning rate before the first step, and
merge into a stored Share model when the training ends."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sized
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerControl

from sharespace.errors import OptionError, StoreConflictError
from sharespace.learn.automatic import (
    REFERENCE_EXAMPLES,
    RateRunner,
    TrialArguments,
    choose_rate,
    new_schedule,
)
from sharespace.learn.directions import choose_directions
from sharespace.learn.held_out import BestState, Loss, loss_of_model, refuse_without_rows
from sharespace.learn.merging import check_base_of, merge_trained, named_adapter, trained_adapter
from sharespace.learn.training import RateChoice, RateTrial
from sharespace.protocols import Batch, PeftModel, ProgressState
from sharespace.share import Share
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.state import check_new_names
from sharespace.tuner.modules import bare

_ATTEMPTS = 5
"""Times that a merge is tried while others commit at the same moment."""


class ChooseDirections(TrainerCallback):
    """Place the directions of a new task's core by the gradient of its loss, before the first step.

    ::

        Trainer(model=model, ..., callbacks=[ChooseDirections()]).train()

    The batches are the first of the training's own. A training that goes on from a checkpoint has
    its directions already.

    Args:
        examples: about how many examples the gradient is taken over.
        adapter: PEFT's name for the adapter.
        seed: of the random sketches.
    """

    def __init__(self, *, examples: int = 256, adapter: str = "default", seed: int = 0) -> None:
        self.examples = examples
        self.adapter = adapter
        self.seed = seed

    def on_train_begin(
        self,
        args: _BatchSizes,
        state: ProgressState,
        control: object,
        *,
        model: nn.Module,
        train_dataloader: Iterable[Batch],
        **others: object,
    ) -> None:
        """Choose and place the directions.

        Args:
            args: says how many examples a batch has.
            state: says whether the training goes on from a checkpoint.
            control, others: what ``Trainer`` gives to every callback; not used.
            model: the PEFT model that is to be trained.
            train_dataloader: gives the batches.

        Raises:
            OptionError: the adapter has no core, or the model returns no loss.
        """
        if state.global_step:
            return
        count = max(self.examples // args.per_device_train_batch_size, 1)
        device = next(model.parameters()).device
        batches = [
            {name: value.to(device) for name, value in batch.items()}
            for batch in islice(train_dataloader, count)
        ]
        choose_directions(
            cast(PeftModel, bare(model)), batches, adapter=self.adapter, seed=self.seed
        )


class _BatchSizes(Protocol):
    """``transformers.TrainingArguments``."""

    per_device_train_batch_size: int


class MergeIntoShare(TrainerCallback):
    """Commit the trained task to a Share model on disk at the end of training.

    ::

        Trainer(model=model, ..., callbacks=[MergeIntoShare("glue.share")]).train()

    What is merged is the best weights where ``load_best_model_at_end`` asks for them, else the
    last. Before training starts, a store that cannot be read and a name that is taken are refused.

    Args:
        path: of the store; its current version is read when training ends, so that tasks which
            others merged meanwhile are kept.
        task: the task's name; None: that of the ``ShareConfig``.
        adapter: PEFT's name for it.
        cap: a new cap of the dimension of every layer and side; None: the caps that it has.
        base: id of the base model, as for ``merge_from``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        task: str | None = None,
        adapter: str = "default",
        cap: int | None = None,
        base: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.task = task
        self.adapter = adapter
        self.cap = cap
        self.base = base

    def on_train_begin(
        self,
        args: object,
        state: ProgressState,
        control: object,
        *,
        model: nn.Module,
        **others: object,
    ) -> None:
        """Refuse now what would fail after hours of training.

        Args:
            args, control, others: what ``Trainer`` gives to every callback; not used.
            state: the progress of the training; not used.
            model: the PEFT model that is to be trained.

        Raises:
            OptionError: nothing names the task.
            TaskExistsError: the name is taken.
            StoreError: the store cannot be read.
            MismatchError: the model's base is another one than the Share model's, or its
                parameters are cut into parts in a way that they cannot be gathered from.
        """
        from sharespace.tuner.sharding import refuse_unreadable

        refuse_unreadable("MergeIntoShare", model)
        _, name = named_adapter("MergeIntoShare", model, self.task, self.adapter)
        share = Share.load(self.path)
        check_new_names([name], share.tasks)
        check_base_of(share, model, self.adapter, self.base)

    def on_train_end(
        self,
        args: object,
        state: ProgressState,
        control: object,
        *,
        model: nn.Module,
        **others: object,
    ) -> None:
        """Merge and save, in the main process only; parts of parameters come from all processes.

        Args:
            args, control, others: what ``Trainer`` gives to every callback; not used.
            state: says whether this is the main process.
            model: the PEFT model that was trained.

        Raises:
            StoreConflictError: others committed at the same moment, too often.
        """
        from sharespace.tuner.sharding import is_cut

        if state.is_world_process_zero or is_cut(model):
            trained = trained_adapter(model, self.task, self.adapter, patient=True)
            if state.is_world_process_zero:
                self._commit(trained)

    def _commit(self, trained: Adapter) -> None:
        """Merge and save; where somebody else committed in between, once more on top of that.

        Raises:
            StoreConflictError: that happened too often.
        """
        for remaining in reversed(range(_ATTEMPTS)):
            share = Share.load(self.path)
            merged = merge_trained(share, trained, cap=self.cap, base=self.base)
            try:
                merged.save()
                return
            except StoreConflictError:
                if not remaining:
                    raise


class AutoRate(TrainerCallback, ExportableState):
    """Choose the learning rate before the first step of any Trainer, as ``adapt`` does.

    ::

        Trainer(model=model, ..., callbacks=[AutoRate()]).train()

    The rate of the arguments is not used. Heads (PEFT's ``modules_to_save``) are trained at 1e-3.
    Examples are held out from the training data
    for the trials; the training itself sees all of them. A checkpoint holds what was chosen, and a
    training that is resumed goes on with it.

    Args:
        loss: a model and a batch -> the loss; None: the one that the model returns. A Trainer with
            a loss of its own has it as ``trainer.compute_loss``.
        held_out: examples that judge, as the collator takes them; the best state on them is kept.
            None: they are taken from the training data.
        heads_apart: groups of the optimizer that hold nothing but heads keep the rate they have.
    """

    def __init__(
        self, loss: Loss | None = None, held_out: object = None, *, heads_apart: bool = False
    ) -> None:
        self.loss = loss or loss_of_model
        self.held_out, self.heads_apart = held_out, heads_apart
        self.choice: RateChoice | None = None
        """What was chosen; None before the training begins."""
        self._heads = contextlib.ExitStack()
        self._watch: BestState | None = None

    def state(self) -> dict[str, dict[str, object]]:
        """What a checkpoint holds.

        Returns:
            The choice, as JSON values.
        """
        return {"args": {}, "attributes": {"choice": self.choice and asdict(self.choice)}}

    def on_train_begin(
        self,
        args: TrialArguments,
        state: ProgressState,
        control: object,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        train_dataloader: DataLoader[Mapping[str, object]],
        **others: object,
    ) -> None:
        """Choose, or take from the checkpoint what was chosen.

        Args:
            args: the Trainer's arguments.
            state: the progress; steps made already are those of a checkpoint.
            control, others: what ``Trainer`` gives to every callback; not used.
            model: as it is trained.
            optimizer: of all that is trained.
            lr_scheduler: gets the chosen rate.
            train_dataloader: its examples are trained on, and held out.

        Raises:
            OptionError: several processes train, the numbers are float16, the schedule is none of
                steps alone, the data cannot be split, no rate gives a finite loss, or the
                checkpoint was trained at a rate that was given.
        """
        schedule = _plain_schedule(args, lr_scheduler)
        runner = RateRunner(
            model,
            optimizer,
            args,
            self.loss,
            train_dataloader,
            self.held_out,
            heads_apart=self.heads_apart,
        )
        if state.global_step:
            where = f"the checkpoint at step {state.global_step}"
            self.choice = _stored_choice(state.stateful_callbacks, where)
        else:
            self.choice = choose_rate(
                runner, state.max_steps, _reference_steps(args, state, runner)
            )
        choice = self.choice
        fresh = new_schedule(
            runner.optimizer, args, choice.learning_rate, choice.steps, runner.apart
        )
        if state.global_step:
            # The optimizer and the schedule come from the checkpoint, all but its function.
            for group, rate in zip(
                runner.optimizer.param_groups, schedule.get_last_lr(), strict=True
            ):
                group["lr"] = rate
        else:
            schedule.base_lrs = fresh.base_lrs
        schedule.lr_lambdas = fresh.lr_lambdas
        self._heads.enter_context(runner.head_steps(choice.learning_rate))
        if self.held_out is not None:
            batches = runner.batches(self.held_out, args.per_device_eval_batch_size)
            self._watch = BestState(model, batches, self.loss, choice.steps)
            self._watch.load(_checkpoint(args, state))

    def on_step_end(
        self, args: object, state: ProgressState, control: TrainerControl, **others: object
    ) -> None:
        """Ask the held-out examples, and stop where that was chosen.

        Args:
            args, others: what ``Trainer`` gives to every callback; not used.
            state: how many steps were made.
            control: is told to stop.
        """
        if self._watch is not None:
            self._watch.ask(state.global_step)
        if self.choice is not None and state.global_step >= self.choice.stop_after:
            control.should_training_stop = True

    def on_save(
        self, args: TrialArguments, state: ProgressState, control: object, **others: object
    ) -> None:
        """Put the best state so far beside a checkpoint.

        Args:
            args: names the folder.
            state: names the checkpoint in it.
            control, others: what ``Trainer`` gives to every callback; not used.
        """
        if self._watch is not None and state.is_world_process_zero:
            self._watch.save(_checkpoint(args, state))

    def on_train_end(self, args: object, state: object, control: object, **others: object) -> None:
        """Take the best state on held-out examples, where there are any.

        Args:
            args, state, control, others: what ``Trainer`` gives to every callback; not used.
        """
        self._heads.close()
        if self._watch is not None and self.choice is not None:
            self.choice = self._watch.taken(self.choice)


def _checkpoint(args: TrialArguments, state: ProgressState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _reference_steps(args: TrialArguments, state: ProgressState, runner: RateRunner) -> int:
    """Steps that a training on 1000 examples would have."""
    if args.max_steps > 0 or runner.held_out is not None:
        return state.max_steps
    refuse_without_rows(runner.data)
    return math.ceil(state.max_steps * REFERENCE_EXAMPLES / len(cast(Sized, runner.data)))


def _plain_schedule(args: TrialArguments, scheduler: LRScheduler) -> LambdaLR:
    """The schedule inside of accelerate's wrapper.

    Raises:
        OptionError: the rate cannot be chosen under these arguments.
    """
    schedule = getattr(scheduler, "scheduler", scheduler)
    problem = None
    if args.world_size > 1:
        problem = f"{args.world_size} processes train together, and trials run in one"
    elif args.fp16:
        problem = "trials have no loss scaling, which float16 needs"
    elif not isinstance(schedule, LambdaLR):
        problem = f"the schedule {args.lr_scheduler_type!s} does not depend on the step alone"
    if problem is not None:
        raise OptionError(
            "learning_rate='auto'",
            problem,
            "Give a number as learning_rate; what one process chooses with bf16 does for all",
        )
    return cast(LambdaLR, schedule)


def choice_of_checkpoint(checkpoint: Path) -> RateChoice:
    """What the training that wrote a checkpoint had chosen.

    Args:
        checkpoint: folder that a Trainer with ``AutoRate`` wrote.

    Raises:
        OptionError: its training had chosen nothing.
    """
    file = checkpoint / TRAINER_STATE_NAME
    state = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return _stored_choice(state.get("stateful_callbacks", {}), f"checkpoint {checkpoint.name!r}")


def _stored_choice(callbacks: Mapping[str, Any], checkpoint: str) -> RateChoice:
    stored = callbacks.get(AutoRate.__name__)
    # Several callbacks of one class are stored as a list.
    entry = stored[-1] if isinstance(stored, list) else stored
    choice = entry["attributes"]["choice"] if entry else None
    if choice is None:
        raise OptionError(
            "learning_rate='auto'",
            f"the training that wrote {checkpoint} did not choose its rate",
            "Give the rate that it was trained at as learning_rate, or start anew",
        )
    trials = tuple(RateTrial(**trial) for trial in choice["trials"])
    return RateChoice(**{**choice, "trials": trials})
