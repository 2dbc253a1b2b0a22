"""Which known tasks a new one starts from, decided on examples that nothing was trained on.

See docs/method.md, "Starts". The candidates are zero (the base model), the mean of the known tasks,
and those few known tasks whose updates lower the loss fastest to first order (``descents``), each
with its own head where the names of the labels agree and with a new head otherwise. A candidate is
judged by its loss before anything but a new head is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Protocol, cast

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from sharespace.formats.companions import labels_of
from sharespace.learn.directions import descents, for_probe, silent
from sharespace.learn.prepare import heads_of, prepare, released
from sharespace.learn.settings import TaskMethod, TrainingSettings
from sharespace.learn.training import Setup, fit, fixed_statistics, trainer_for
from sharespace.protocols import PeftModel
from sharespace.share import Share
from sharespace.subspace.state import Task

_SHORTLIST = 3
"""Known tasks that are tried: those whose updates lower the loss fastest."""

_OWN_HEADS = 8
"""Known tasks that are tried with their own heads, where these may fit."""

_HELD_OUT, _MOST = 0.25, 256
"""Part of the examples that candidates are judged by, and the most of them."""

_CHUNKS, _FEWEST = 16, 4
"""Groups of held-out examples whose losses are compared in pairs, and fewer than which tell
nothing."""

_SURE = 2.0
"""Standard errors by which a start must be better than zero: what cannot be told apart from zero
is none."""

_HEAD_PART = 5
"""New heads alone are trained for 1/5 of the steps: the gradient of a random head says nothing of
the task."""


@dataclass(frozen=True)
class Candidate:
    """One start that was tried."""

    start: str
    """``"zero"``, ``"mean"`` or a known task."""
    own_head: bool
    """True: with the known task's own head; False: with a new one, or the model has none."""
    loss: float
    """Mean loss on held-out examples."""
    gain: float
    """How much less that is than from zero; 0 for zero itself."""
    error: float
    """Standard error of the gain, over the same held-out examples."""

    @property
    def is_sure(self) -> bool:
        """True where the gain is above two standard errors."""
        return self.gain > _SURE * self.error


@dataclass(frozen=True)
class StartChoice:
    """What a new task starts from, and why."""

    start: str
    """``"zero"``, ``"mean"`` or a known task."""
    copies_heads: bool
    """True: its heads begin as those of the start."""
    mixture: tuple[str, ...]
    """Known tasks whose weights are trained."""
    why: str
    """One sentence."""
    candidates: tuple[Candidate, ...] = ()
    """All that were tried; empty where nothing had to be chosen."""
    held_out: int = 0
    """Examples that they were judged by."""

    def __str__(self) -> str:
        tried = ", ".join(
            f"{c.start}{' with its head' if c.own_head else ''} {c.loss:.4f}"
            for c in self.candidates
        )
        return f"starts from {self.start}: {self.why}" + (f" (loss: {tried})" if tried else "")


def choose_start(
    model: nn.Module,
    share: Share,
    data: object,
    training: TrainingSettings,
    *,
    task: str,
    method: TaskMethod,
    setup: Setup,
) -> StartChoice:
    """What ``adapt`` lets a new task start from; the model is afterwards as it was.

    A start that the method names is taken, with the task's heads where the label names agree.
    ``"auto"`` takes the candidate with the least loss on held-out examples if that is less than
    from zero by more than two standard errors of the difference, else zero. Held out are
    ``setup.evaluation``, or a quarter of the examples, at most 256, drawn by ``training.seed``.

    Args:
        model: the base model.
        share: has the known tasks.
        data: the new task's examples.
        training: its batch size, steps and seed are used.
        task: the new task's name.
        method: what is trained; its ``start`` and ``known``.
        setup: trainer, collator and evaluation data.

    Raises:
        As ``prepare``.
    """
    heads = heads_of(model, share, method)
    asks = _Question(model, share, training, task, replace(method, heads=heads, known=0), setup)
    ranked = asks.ranked(data) if share.tasks and _needs_ranking(method, share) else ()
    choice = _chosen(asks, data, method, ranked)
    if not method.known:
        return choice
    first = [choice.start] if choice.start in share.tasks else []
    names = dict.fromkeys([*first, *(ranked or share.tasks)])
    mixture = tuple(names)[: method.known] if choice.start != "mean" else tuple(share.tasks)
    return replace(choice, mixture=mixture)


def _needs_ranking(method: TaskMethod, share: Share) -> bool:
    """True where the gradient must tell which of the known tasks are tried or mixed in."""
    return method.start == "auto" or 0 < method.known < len(share.tasks)


def train_heads(
    peft_model: PeftModel,
    data: object,
    training: TrainingSettings,
    method: TaskMethod,
    setup: Setup,
) -> None:
    """The heads alone, at what the task starts from, as a linear probe.

    A random head's gradient would distort what it is given (Kumar et al. 2022,
    arXiv 2202.10054); here it would choose the directions, too. Without ``head_steps``: for a fifth
    of the steps where directions are chosen by the gradient, else not at all.
    """
    if method.head_steps == 0 or (method.head_steps is None and not method.uses_gradient):
        return
    steps, epochs = method.head_steps, training.num_train_epochs
    if steps is None:
        steps = max(training.max_steps // _HEAD_PART, 1) if training.max_steps > 0 else -1
        epochs = epochs / _HEAD_PART
    held = [p for n, p in peft_model.named_parameters() if p.requires_grad and ".sharespace_" in n]
    for parameter in held:
        parameter.requires_grad_(False)
    short = replace(
        for_probe(training),
        max_steps=steps,
        num_train_epochs=epochs,
    )
    fit(peft_model, data, short, silent(setup))
    for parameter in held:
        parameter.requires_grad_(True)


@dataclass(frozen=True, eq=False)
class _Question:
    """Everything but the examples that candidates are judged with."""

    model: nn.Module
    share: Share
    training: TrainingSettings
    task: str
    method: TaskMethod
    setup: Setup

    def ranked(self, data: object) -> tuple[str, ...]:
        """Known tasks, first those whose updates lower the loss fastest; those that raise it are
        left out."""
        plain = replace(self.method, start="zero", form="core", directions=None, dropout=0.0)
        with released(prepare(self.model, self.share, self.task, plain), always=True) as peft_model:
            if self.method.heads:
                train_heads(peft_model, data, self.training, plain, self.setup)
            falls = descents(peft_model, self.share, data, self.training, self.setup)
        by_fall = sorted(falls, key=lambda name: -falls[name])
        return tuple(name for name in by_fall if falls[name] > 0)

    def losses(
        self, start: str, own_head: bool, train: object, held_out: object, count: int
    ) -> list[float]:
        """Loss of each group of held-out examples, before anything but a new head is trained."""
        from sharespace.tuner.modules import fill_heads

        plain = replace(self.method, start=start, form="core", directions=None, dropout=0.0)
        with released(prepare(self.model, self.share, self.task, plain), always=True) as peft_model:
            if own_head:
                fill_heads(peft_model, "default", self.share.task(start))
            elif self.method.heads:
                train_heads(peft_model, train, self.training, plain, self.setup)
            size = max(count // _CHUNKS, 1)
            judged = replace(for_probe(self.training), per_device_eval_batch_size=size)
            with (
                trainer_for(peft_model, held_out, judged, silent(self.setup, held_out)) as trainer,
                fixed_statistics(peft_model),
                torch.no_grad(),
            ):
                peft_model.eval()
                losses = [
                    float(trainer.compute_loss(peft_model, batch))
                    for batch in trainer.get_eval_dataloader()
                ]
            return _of_all_processes(losses)

    def heads_agree(self, name: str) -> bool | None:
        """Whether a known task's labels are those of the new one; None: nobody named them, and the
        heads have the same shapes."""
        from sharespace.tuner.modules import head_tensors

        known = self.share.model.tasks[name]
        if not self.method.heads or not known.kept:
            return False
        ours = labels_of(getattr(getattr(self.model, "config", None), "id2label", None))
        if ours and known.labels:
            return ours == known.labels and _fits(self.model, head_tensors(known), self.method)
        return None if _fits(self.model, head_tensors(known), self.method) else False


def _fits(model: nn.Module, tensors: Mapping[str, torch.Tensor], method: TaskMethod) -> bool:
    """True where all heads of the model are among the tensors, in the same shapes."""
    from sharespace.tuner.modules import bare

    own = {
        key: value.shape
        for key, value in bare(model).state_dict().items()
        if any(key.startswith(f"{head}.") for head in method.heads or ())
    }
    return bool(own) and all(
        key in tensors and tensors[key].shape == shape for key, shape in own.items()
    )


def _chosen(
    asks: _Question, data: object, method: TaskMethod, ranked: Sequence[str]
) -> StartChoice:
    """The start without a mixture."""
    known: Mapping[str, Task] = asks.share.model.tasks
    if method.start != "auto":
        copied = method.start in known and asks.heads_agree(method.start) is True
        why = "as asked for" + (", with its heads: the labels are the same" if copied else "")
        return StartChoice(method.start, copied, (), why)
    if not known:
        return StartChoice("zero", False, (), "no task is known")
    parts = _split(data, asks.setup.evaluation, asks.training.seed)
    if parts is None:
        return StartChoice("zero", False, (), "there are too few examples to hold some out")
    train, held_out, count = parts
    candidates: list[Candidate] = []
    zero: list[float] = []
    for start, own_head in _starts(asks, ranked):
        losses = asks.losses(start, own_head, train, held_out, count)
        zero = zero or losses
        candidates.append(_judged(start, own_head, losses, zero))
    if len(zero) < _FEWEST:
        why = f"{count} held-out examples are too few to tell starts apart"
        return StartChoice("zero", False, (), why, tuple(candidates), count)
    sure = [c for c in candidates if c.is_sure]
    if not sure:
        why = f"no start is better on {count} held-out examples by two standard errors"
        return StartChoice("zero", False, (), why, tuple(candidates), count)
    best = min(sure, key=lambda c: c.loss)
    why = (
        f"its loss on {count} held-out examples is {best.gain:.4f} (standard error "
        f"{best.error:.4f}) less than from zero"
    )
    return StartChoice(best.start, best.own_head, (), why, tuple(candidates), count)


def _starts(asks: _Question, ranked: Sequence[str]) -> list[tuple[str, bool]]:
    """(start, with its own head) of every candidate, zero first.

    An own head costs one pass over the held-out examples, a new one a training: known heads that
    may fit are tried for more tasks than are on the shortlist.
    """
    agree = {name: asks.heads_agree(name) for name in asks.share.tasks}
    own = sorted((n for n in agree if agree[n] is not False), key=lambda n: agree[n] is not True)
    own = list(dict.fromkeys([*(n for n in ranked if n in own), *own]))[:_OWN_HEADS]
    new = [name for name in ranked[:_SHORTLIST] if agree[name] is not True]
    mean = [("mean", False)] if len(agree) > 1 else []
    return [("zero", False), *((n, True) for n in own), *((n, False) for n in new), *mean]


def _of_all_processes(losses: list[float]) -> list[float]:
    """In a distributed training each process judges by its own part, and all must choose alike."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return losses
    parts: list[list[float]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, losses)
    return [loss for part in parts for loss in part]


def _judged(
    start: str, own_head: bool, losses: Sequence[float], zero: Sequence[float]
) -> Candidate:
    gains = [before - now for before, now in zip(zero, losses, strict=True)]
    loss, gain = fmean(losses), fmean(gains)
    if not math.isfinite(loss):
        return Candidate(start, own_head, math.inf, -math.inf, 0.0)
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    return Candidate(start, own_head, loss, gain, error)


class _Selectable(Protocol):
    """A data set of the library ``datasets``."""

    def select(self, indices: Sequence[int]) -> object: ...


def _split(data: object, evaluation: object, seed: int) -> tuple[object, object, int] | None:
    """(examples to train heads on, held-out examples, how many of these); None: too few."""
    if evaluation is not None and hasattr(evaluation, "__len__"):
        count = min(len(evaluation), _MOST)
        return data, _part(evaluation, range(count)), count
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        return None
    total = len(data)
    count = min(int(total * _HELD_OUT), _MOST)
    if count < _FEWEST:
        return None
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    return _part(data, order[count:]), _part(data, order[:count]), count


def _part(data: object, indices: Sequence[int]) -> object:
    """Some of the examples, in a data set of the same kind where there is a way."""
    if hasattr(data, "select"):
        return cast(_Selectable, data).select(list(indices))
    if isinstance(data, Sequence):
        return [data[i] for i in indices]
    return Subset(cast("Dataset[object]", data), list(indices))
