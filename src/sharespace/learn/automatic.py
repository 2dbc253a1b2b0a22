"""A learning rate and a number of steps that nobody has to choose (``learning_rate="auto"``).

The rate of a core between frozen directions decides how much of LoRA's gain it reaches, and the
best one differs between tasks (``experiments/text_stream``, "The rate that chooses itself"). It is
chosen by the loss on examples that no trial trains on:

- **Successive halving** (Jamieson and Talwalkar 2016, arXiv 1502.07943) for more than 256 examples:
  whole short schedules at rates a factor of two apart, until the best lies between two worse ones,
  then longer schedules at the best two. A schedule is never cut off: a rate that is judged before
  it has decayed is judged by its noise, so that too small a one would win.
- **Cross-validation** for at most 256 examples, as one split of 64 examples says next to nothing.
  The rate is chosen on two folds; then all folds are trained at it, and the number of steps is the
  one at which their mean loss is lowest.

A trial whose loss is not finite is dropped. Where no trial beats the untrained state, they say
nothing, and the usual rate of what is trained (``BASE_RATES``) stands. All trials start from the
same state, which is put back afterwards, so the training itself is the same as with the chosen
numbers given.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Subset

from sharespace.errors import OptionError
from sharespace.extras import require
from sharespace.learn.held_out import (
    HeldOut,
    Loss,
    Losses,
    TrainedState,
    folds_of,
    held_out_losses,
    held_out_split,
    refuse_without_rows,
)
from sharespace.learn.settings import AUTO_HEAD_RATE, TrainingSettings
from sharespace.learn.training import Fit, RateChoice, RateTrial, Setup, fit, seeded, train
from sharespace.protocols import Batch, TrainerLike

_LOG = logging.getLogger("sharespace.learn")

FEW_EXAMPLES = 256
"""So many examples at most are judged by cross-validation."""

_MOST_RATES = 6
"""Rates a factor of two apart that are tried at most; three or four are the rule."""

_FIRST, _SECOND = 1 / 25, 1 / 12
"""Length of the two rounds of halving, as parts of the training's steps: three or four runs of the
first and two of the second are 30 % of it, six of the first 41 %."""

_JUDGED = 1 / 3
"""Cost of an example that only judges, as a part of one that is trained on."""

_LEAST_STEPS = 4
"""A schedule of fewer steps says nothing."""

REFERENCE_EXAMPLES = 1000
"""For few examples all trials cost at most as much as one training on so many examples."""

_FIRST_OF_FEW, _SECOND_OF_FEW = 1 / 48, 1 / 8
"""Length of both rounds on few examples, as parts of the steps of that training: twelve runs of the
first, at most, and four of the second are 75 % of it."""

_SHOWN = 2.0
"""Standard errors by which a trial must beat the untrained state to say anything."""

_CHECKS = 5
"""Steps of the second round at which the held-out examples are asked."""

_JUDGED_AT_ONCE, _JUDGED_OF_FEW = 16, 8
"""Examples in a batch that judges: small, as the batches' differences give the standard error."""

BASE_RATES: Mapping[str, float] = {
    "core": 3e-2,
    "factors": 4e-3,
    "lora": 1e-3,
    "heads": 5e-4,
}
"""What is trained -> its usual rate with AdamW, at which the search begins."""


class TrialArguments(Protocol):
    """What trials need of ``transformers.TrainingArguments``."""

    lr_scheduler_type: str
    lr_scheduler_kwargs: Mapping[str, object] | None
    max_grad_norm: float
    gradient_accumulation_steps: int
    train_batch_size: int
    dataloader_num_workers: int
    seed: int
    device: torch.device
    per_device_eval_batch_size: int
    max_steps: int
    output_dir: str
    fp16: bool
    world_size: int

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Steps over which the rate rises."""


class RateRunner:
    """Short trainings of one model at several rates, by the optimizer of a Trainer.

    Args:
        model: as its Trainer has prepared it, ready to be trained.
        optimizer: of all that is trained; it has made no step yet.
        arguments: of the Trainer.
        loss: of one batch.
        loader: of the training data.
        held_out: examples that judge; None: they are taken from the training data.
        heads_apart: groups of the optimizer that hold nothing but heads keep their rate.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        arguments: TrialArguments,
        loss: Loss,
        loader: DataLoader[Mapping[str, object]],
        held_out: object = None,
        heads_apart: bool = False,
    ) -> None:
        self.model, self.arguments, self.loss, self.loader = model, arguments, loss, loader
        self.optimizer = plain_optimizer(optimizer)
        self.held_out = held_out
        self.base_rate = base_rate(model)
        self.apart = groups_of_heads(model, self.optimizer) if heads_apart else []
        self.begin = TrainedState(model)
        self.trials: list[RateTrial] = []
        self.cost = 0.0
        """Steps that all of it took so far."""

    @property
    def examples_a_step(self) -> int:
        """Examples that one step of the optimizer sees."""
        return self.arguments.train_batch_size * self.arguments.gradient_accumulation_steps

    def head_steps(self, rate: float) -> AbstractContextManager[None]:
        """See ``head_steps``."""
        return head_steps(self.model, self.optimizer, rate, self.apart)

    def judge(self, batches: Sequence[Batch]) -> HeldOut:
        """What held-out examples lose now."""
        held_out = held_out_losses(self.model, batches, self.loss)
        self.cost += _JUDGED * float(held_out.rows.sum()) / self.examples_a_step
        return held_out

    @property
    def data(self) -> Dataset[Mapping[str, object]]:
        """The training data."""
        return self.loader.dataset

    def batches(self, data: object, size: int) -> list[Batch]:
        """Examples in their order, as the model takes them."""
        rows = cast(Dataset[Mapping[str, object]], data)
        loader = DataLoader(rows, batch_size=size, collate_fn=self.loader.collate_fn)
        # Every loader draws a number, which would change the order of the training's examples.
        with seeded(self.arguments.seed):
            return [self._placed(batch) for batch in loader]

    def run(
        self,
        rate: float,
        steps: int,
        batches: Sequence[Batch],
        train: Sequence[int] | None = None,
        checks: Sequence[int] = (),
    ) -> dict[int, HeldOut]:
        """One whole schedule from the beginning; what held-out examples lose at some steps.

        Args:
            rate: of all but the heads.
            steps: of the schedule.
            batches: held-out ones.
            train: rows that are trained on; None: all, in the Trainer's own batches.
            checks: steps after which the held-out examples are asked, beside the last.

        Returns:
            Step -> losses; steps after a loss that is not finite are missing.
        """
        self.begin.put_back()
        self.optimizer.state.clear()
        schedule = new_schedule(self.optimizer, self.arguments, rate, steps, self.apart)
        results: dict[int, HeldOut] = {}
        with seeded(self.arguments.seed), self.head_steps(rate):
            self.model.train()
            stream = self._stream(train)
            for step in range(1, steps + 1):
                if not self._step(stream):
                    break
                schedule.step()
                self.cost += 1
                if step == steps or step in checks:
                    results[step] = self.judge(batches)
        self.optimizer.state.clear()
        self.begin.put_back()
        return results

    def tried(self, rate: float, steps: int, results: Sequence[Losses]) -> HeldOut | None:
        """Write a trial down, over one or more splits; its losses, or None where it is dropped."""
        ends = [by_step[steps] for by_step in results if steps in by_step]
        end = HeldOut.joined(ends) if len(ends) == len(results) else None
        if end is None or not math.isfinite(end.mean):
            self.trials.append(RateTrial(rate, steps, math.inf, math.inf))
            return None
        self.trials.append(RateTrial(rate, steps, end.mean, end.standard_error))
        return end

    def _step(self, stream: Iterator[Batch]) -> bool:
        """One step of the optimizer; False where the loss was not finite."""
        accumulated = self.arguments.gradient_accumulation_steps
        for batch in islice(stream, accumulated):
            loss = self.loss(self.model, dict(batch)).mean()
            if not torch.isfinite(loss):
                self.optimizer.zero_grad()
                return False
            torch.autograd.backward(loss / accumulated)
        if self.arguments.max_grad_norm > 0:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.arguments.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return True

    def _stream(self, rows: Sequence[int] | None) -> Iterator[Batch]:
        """Batches without end."""
        loader = self.loader if rows is None else self._over(Subset(self.data, rows))
        return (self._placed(batch) for epoch in repeat(loader) for batch in epoch)

    def _over(self, data: Dataset[Mapping[str, object]]) -> DataLoader[Mapping[str, object]]:
        sampler = BatchSampler(
            RandomSampler(cast(Sized, data)), self.arguments.train_batch_size, drop_last=False
        )
        return DataLoader(
            data,
            batch_sampler=sampler,
            collate_fn=self.loader.collate_fn,
            num_workers=self.arguments.dataloader_num_workers,
        )

    def _placed(self, batch: object) -> Batch:
        send = require("accelerate.utils", "train").send_to_device
        return cast(Batch, send(batch, self.arguments.device))


def plain_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside of accelerate's wrapper."""
    inner: Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def base_rate(model: nn.Module) -> float:
    """The rate at which the search begins, for what a model trains."""
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    if any(".sharespace_core." in name for name in names):
        return BASE_RATES["core"]
    if any(".sharespace_" in name for name in names):
        return BASE_RATES["factors"]
    return BASE_RATES["lora" if any(".lora_" in name for name in names) else "heads"]


def in_heads(model: nn.Module) -> set[int]:
    """Ids of the parameters of heads; empty where nothing but heads is trained."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    # PEFT keeps below this name what is trained whole.
    heads = {id(p) for n, p in trained.items() if ".modules_to_save." in n}
    return heads if len(heads) < len(trained) else set()


def groups_of_heads(model: nn.Module, optimizer: Optimizer) -> list[int]:
    """Numbers of the groups that hold nothing but heads."""
    heads = in_heads(model)
    groups = enumerate(optimizer.param_groups)
    return [n for n, group in groups if all(id(p) in heads for p in group["params"])]


def new_schedule(
    optimizer: Optimizer,
    arguments: TrialArguments,
    rate: float,
    steps: int,
    apart: Collection[int] = (),
) -> torch.optim.lr_scheduler.LambdaLR:
    """The Trainer's kind of schedule over so many steps.

    Args:
        optimizer: its groups get the rate.
        arguments: of the Trainer.
        rate: at the top of the schedule.
        steps: of the schedule.
        apart: numbers of the groups that keep the rate they have.
    """
    for number, group in enumerate(optimizer.param_groups):
        if number not in apart:
            group["initial_lr"] = rate
        group["lr"] = group["initial_lr"]
    schedule: torch.optim.lr_scheduler.LambdaLR = require("transformers", "train").get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs or {}),
    )
    return schedule


@contextmanager
def head_steps(
    model: nn.Module, optimizer: Optimizer, rate: float, apart: Collection[int] = ()
) -> Iterator[None]:
    """In groups that hold heads and other parameters, the heads' steps are scaled to their rate.

    An optimizer's step is linear in its rate, weight decay included, so a step at the rate of the
    cores, shortened afterwards, is the step at the rate of the heads. Groups of their own would
    change what the Trainer stores in a checkpoint.
    """
    heads = in_heads(model)
    mixed = [
        p
        for number, group in enumerate(optimizer.param_groups)
        if number not in apart
        for p in group["params"]
        if id(p) in heads
    ]
    part = min(AUTO_HEAD_RATE / rate, 1.0)
    before: list[Tensor] = []

    def remember(*_: object) -> None:
        before[:] = [p.detach().clone() for p in mixed]

    @torch.no_grad()
    def shorten(*_: object) -> None:
        for parameter, value in zip(mixed, before, strict=True):
            parameter.copy_(value + part * (parameter - value))

    handles = [
        optimizer.register_step_pre_hook(remember),
        optimizer.register_step_post_hook(shorten),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def choose_rate(runner: RateRunner, steps: int, reference_steps: int) -> RateChoice:
    """Choose a rate and where to stop; the model and its optimizer are afterwards as before.

    Args:
        runner: of the model, before its first step.
        steps: of the training, by its settings.
        reference_steps: that a training on 1000 examples would have, which limits what all trials
            on few examples may cost.

    Raises:
        OptionError: the data cannot be split, or no rate gives a finite loss.
    """
    started = time.monotonic()
    if runner.held_out is None:
        refuse_without_rows(runner.data)
    if runner.held_out is None and len(cast(Sized, runner.data)) <= FEW_EXAMPLES:
        choice = _by_folds(runner, steps, reference_steps)
    else:
        choice = _by_halving(runner, steps)
    choice = replace(
        choice,
        cost=runner.cost,
        seconds=time.monotonic() - started,
        trials=tuple(runner.trials),
    )
    _LOG.info(choice.told())
    return choice


def _by_halving(runner: RateRunner, steps: int) -> RateChoice:
    if runner.held_out is None:
        split = held_out_split(runner.data, runner.arguments.seed, steps * runner.examples_a_step)
        train: Sequence[int] | None = split.train
        judges: object = Subset(runner.data, split.held_out)
    else:
        train, judges = None, runner.held_out
    batches = runner.batches(judges, _JUDGED_AT_ONCE)
    untrained = runner.judge(batches)

    def trial(rate: float, length: int) -> HeldOut | None:
        return runner.tried(rate, length, [runner.run(rate, length, batches, train)])

    first, second = _length(steps * _FIRST, steps), _length(steps * _SECOND, steps)
    trials = _bracketed(runner.base_rate, lambda rate: trial(rate, first))
    judged = dict(trials)
    if second > first:
        longer = {rate: trial(rate, second) for rate in _ranked(trials)[:2]}
        judged = {rate: end for rate, end in longer.items() if end is not None} or judged
    best, learned = _decided(runner.base_rate, trials, judged, untrained)
    end = judged.get(best, trials[best])
    return RateChoice(
        learning_rate=best,
        learned=learned,
        steps=steps,
        stop_after=steps,
        held_out=int(untrained.rows.sum()),
        folds=1,
        loss=end.mean,
        standard_error=end.standard_error,
        untrained=untrained.mean,
    )


def _by_folds(runner: RateRunner, steps: int, reference_steps: int) -> RateChoice:
    splits = folds_of(runner.data, runner.arguments.seed)
    batches = [
        runner.batches(Subset(runner.data, split.held_out), _JUDGED_OF_FEW) for split in splits
    ]
    untrained = HeldOut.joined([runner.judge(part) for part in batches])

    def run(rate: float, length: int, folds: int, checks: Sequence[int]) -> list[Losses]:
        pairs = list(zip(splits, batches, strict=True))[:folds]
        return [runner.run(rate, length, part, split.train, checks) for split, part in pairs]

    first = _length(reference_steps * _FIRST_OF_FEW, steps)
    length = _length(reference_steps * _SECOND_OF_FEW, steps)
    trials = _bracketed(
        runner.base_rate, lambda rate: runner.tried(rate, first, run(rate, first, 2, ()))
    )
    judges = HeldOut.joined([runner.judge(part) for part in batches[:2]])
    best, learned = _decided(runner.base_rate, trials, trials, judges)
    checks = sorted({math.ceil(length * part / _CHECKS) for part in range(1, _CHECKS + 1)})
    results = run(best, length, len(splits), checks)
    runner.tried(best, length, results)
    # A step that one fold did not reach is none to stop at.
    by_step = {
        step: HeldOut.joined([result[step] for result in results])
        for step in checks
        if all(step in result for result in results)
    }
    _refuse_nothing_finite(held_out.mean for held_out in by_step.values())
    stop = min(by_step, key=lambda step: by_step[step].mean)
    return RateChoice(
        learning_rate=best,
        learned=learned,
        steps=length,
        stop_after=stop,
        held_out=int(untrained.rows.sum()),
        folds=len(splits),
        loss=by_step[stop].mean,
        standard_error=by_step[stop].standard_error,
        untrained=untrained.mean,
    )


def _bracketed(middle: float, trial: Callable[[float], HeldOut | None]) -> dict[float, HeldOut]:
    """Rate -> losses, of rates a factor of two apart, until the best lies between two worse ones.

    Args:
        middle: where the search begins.
        trial: of a rate; None where its loss is not finite.

    Returns:
        The trials that have a finite loss.
    """
    trials = {rate: trial(rate) for rate in (middle, 2 * middle)}
    for _ in range(_MOST_RATES - 2):
        losses = {rate: end.mean if end else math.inf for rate, end in trials.items()}
        best = min(losses, key=lambda rate: (losses[rate], rate))
        if best not in (min(losses), max(losses)):
            break
        rate = best / 2 if best == min(losses) else best * 2
        trials[rate] = trial(rate)
    finite = {rate: end for rate, end in trials.items() if end is not None}
    _refuse_nothing_finite(end.mean for end in finite.values())
    return finite


def _decided(
    usual: float,
    first: Mapping[float, HeldOut],
    judged: Mapping[float, HeldOut],
    untrained: HeldOut,
) -> tuple[float, bool]:
    """The rate, and whether the trials showed any learning.

    In the first steps of some tasks the loss rises at every rate, and least at the smallest one,
    which at the end of the training is among the worst (qnli in ``experiments/text_stream``). So
    trials that do not beat the untrained state say nothing, and the usual rate stands.

    Args:
        usual: the rate at which the search began.
        first: the trials of the first round.
        judged: those of the last one.
        untrained: what the same examples lose before training.
    """
    best = _ranked(judged)[0]
    learned = judged[best].is_below(untrained, _SHOWN)
    if usual not in first:
        return best, learned
    if not learned or (usual in judged and not judged[best].is_below(judged[usual], 1.0)):
        return usual, learned
    return best, True


def _ranked(trials: Mapping[float, HeldOut]) -> list[float]:
    """Rates, the best first."""
    return sorted(trials, key=lambda rate: trials[rate].mean)


def _refuse_nothing_finite(losses: Iterable[float]) -> None:
    """Raises OptionError where no trial has a finite loss."""
    if not any(map(math.isfinite, losses)):
        raise OptionError(
            "learning_rate='auto'",
            "no rate that was tried gives a finite loss on held-out examples",
            "Check the data and the model's loss, or give a number as learning_rate",
        )


def _length(wanted: float, most: int) -> int:
    """Whole steps of a trial."""
    return min(max(round(wanted), _LEAST_STEPS), most)


def automatic_fit(
    model: nn.Module, dataset: object, training: TrainingSettings, setup: Setup | None = None
) -> Fit:
    """Train as ``fit`` does; with ``learning_rate="auto"`` the rate is chosen first.

    Args:
        model: returns a loss when called with the examples' fields.
        dataset: as ``fit`` takes it.
        training: steps, learning rates, batch sizes and the like.
        setup: evaluation, metrics, callbacks, another trainer. Evaluation data judge the rates in
            the place of examples that are held out from the training data, and the best state on
            them is kept.

    Returns:
        What ``fit`` returns; ``choice`` says what was chosen.

    Raises:
        MissingExtraError: transformers or accelerate is not installed.
        OptionError: nothing requires a gradient; the data cannot be split; no rate gives a finite
            loss; several processes train; or a checkpoint to resume from was trained at a rate
            that was given.
    """
    if training.learning_rate != "auto":
        return fit(model, dataset, training, setup)
    from sharespace.learn.callbacks import AutoRate, choice_of_checkpoint

    if setup is not None and setup.resume is not None:
        # Before the Trainer, which says of another training's checkpoint that its sizes differ.
        choice_of_checkpoint(Path(setup.resume))
    given = replace(training, learning_rate=base_rate(model), head_learning_rate=training.head_rate)
    callbacks: list[AutoRate] = []

    def prepare(trainer: TrainerLike) -> None:
        held_out = None
        if setup is not None and setup.evaluation is not None:
            held_out = trainer.get_eval_dataloader().dataset
        callbacks.append(AutoRate(trainer.compute_loss, held_out, heads_apart=True))
        trainer.add_callback(callbacks[0])

    fitted = train(model, dataset, given, setup or Setup(), prepare)
    return replace(fitted, choice=callbacks[0].choice)
