"""Examples that are held out from a training, what they lose, and the best state on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sharespace.errors import OptionError
from sharespace.learn.training import RateChoice
from sharespace.protocols import Batch

_FOLDS = 4

_MOST_HELD_OUT, _HELD_OUT_PART = 512, 0.15
"""Held-out examples: this part of all, and at most so many."""

_LEAST_HELD_OUT, _JUDGED_PART = 64, 0.025
"""A short training has fewer of them: this part of the examples that it trains on, as the trials
ask them up to nine times, but not fewer than 64."""

_LABELS_READ = 4096
"""Larger data sets are split without a look at their labels: chance does well enough then."""

_WATCHED = 8
"""Times that evaluation data are asked in a training."""

_BEST = "sharespace_best.pt"
"""In a checkpoint: the best state so far on held-out examples."""

Loss = Callable[[nn.Module, Batch], Tensor]
"""A model and a batch -> its mean loss, which gradients flow from."""


@dataclass(frozen=True)
class Split:
    """Rows that are trained on, and rows that judge."""

    train: Sequence[int]
    held_out: Sequence[int]


def rows_by_class(labels: Sequence[object] | None, count: int, seed: int) -> list[list[int]]:
    """The rows of each class, in random order; all rows as one class where there are no labels.

    Args:
        labels: one a row; None: they are not known.
        count: number of rows.
        seed: of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    classes: dict[object, list[int]] = {}
    for row in torch.randperm(count, generator=generator).tolist():
        classes.setdefault(labels[row] if labels else None, []).append(row)
    return list(classes.values())


def labels_of(data: Dataset[Mapping[str, object]]) -> list[object] | None:
    """The class of each row; None where rows have none, or are too many to be read."""
    count = len(cast(Sized, data))
    if count > _LABELS_READ:
        return None
    labels = [_label(data[row]) for row in range(count)]
    return None if any(label is None for label in labels) else labels


def _label(example: object) -> object | None:
    if not isinstance(example, Mapping):
        return None
    label = example.get("labels", example.get("label"))
    if isinstance(label, Tensor) and label.ndim == 0 and not label.is_floating_point():
        return int(label)
    return label if isinstance(label, int | str) else None


def held_out_split(data: Dataset[Mapping[str, object]], seed: int, trained: int) -> Split:
    """One split, stratified by label: 15 % of the rows, at most 512, are held out.

    Args:
        data: more than 256 rows.
        seed: of the choice.
        trained: examples that the whole training sees, each as often as it does; a short one has
            fewer held-out examples, so that these do not cost more than it.
    """
    count = len(cast(Sized, data))
    classes = rows_by_class(labels_of(data), count, seed)
    # The j-th of m rows of a class stands at (j + 1/2) / m of the way, so that each beginning has
    # the classes in proportion.
    placed = [((j + 0.5) / len(rows), row) for rows in classes for j, row in enumerate(rows)]
    order = [row for _, row in sorted(placed)]
    affordable = max(_LEAST_HELD_OUT, math.ceil(_JUDGED_PART * trained))
    held_out = min(_MOST_HELD_OUT, math.ceil(_HELD_OUT_PART * count), affordable)
    return Split(sorted(order[held_out:]), sorted(order[:held_out]))


def folds_of(data: Dataset[Mapping[str, object]], seed: int) -> list[Split]:
    """The splits of a cross-validation, stratified by label."""
    count = len(cast(Sized, data))
    dealt = [row for rows in rows_by_class(labels_of(data), count, seed) for row in rows]
    parts = [dealt[first::_FOLDS] for first in range(_FOLDS)]
    return [Split(sorted(set(dealt) - set(part)), sorted(part)) for part in parts]


def refuse_without_rows(data: object) -> None:
    """Refuse a data set that cannot be split.

    Raises:
        OptionError: it has no length, such as an iterable one, or fewer than eight rows.
    """
    has_rows = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not has_rows or isinstance(data, torch.utils.data.IterableDataset):
        raise OptionError(
            "learning_rate='auto'",
            "the training data has no length, so no examples can be held out from it",
            "Give Setup(evaluation=...) and max_steps, or a number as learning_rate",
        )
    if len(cast(Sized, data)) < 2 * _FOLDS:
        raise OptionError(
            "learning_rate='auto'",
            f"{len(cast(Sized, data))} examples are too few to choose a rate by",
            f"Give {2 * _FOLDS} examples or more, or a number as learning_rate",
        )


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What held-out examples lose: one number a batch, as losses are means over a batch."""

    losses: Tensor
    """float64 [batches]."""
    rows: Tensor
    """float64 [batches]: examples of each."""

    @property
    def mean(self) -> float:
        """Over all examples; infinite where it is not finite."""
        mean = float((self.losses * self.rows).sum() / self.rows.sum())
        return mean if math.isfinite(mean) else math.inf

    @property
    def standard_error(self) -> float:
        """Of the mean, from the differences between batches; infinite where nothing tells."""
        count = len(self.losses)
        if count < 2 or self.mean == math.inf:
            return math.inf
        spread = (self.rows * (self.losses - self.mean)).square().sum().sqrt() / self.rows.sum()
        return float(spread * math.sqrt(count / (count - 1)))

    def is_below(self, other: HeldOut, errors: float) -> bool:
        """True where the same batches lose less here, by so many standard errors of their paired
        difference."""
        difference = HeldOut(self.losses - other.losses, self.rows)
        return difference.mean < -errors * difference.standard_error

    @staticmethod
    def joined(parts: Sequence[HeldOut]) -> HeldOut:
        """Those of all parts."""
        return HeldOut(torch.cat([p.losses for p in parts]), torch.cat([p.rows for p in parts]))


Losses = Mapping[int, HeldOut]
"""Step -> what held-out examples lose after it."""


@torch.no_grad()
def held_out_losses(model: nn.Module, batches: Sequence[Batch], loss: Loss) -> HeldOut:
    """The loss of each batch in evaluation mode; the model is in its mode again afterwards.

    Args:
        model: on the batches' device.
        batches: of held-out examples.
        loss: of one batch.
    """
    training = model.training
    model.eval()
    # A copy: a Trainer takes the labels out of the batch that it is given.
    losses = [float(loss(model, dict(batch)).mean()) for batch in batches]
    model.train(training)
    rows = [len(next(v for v in b.values() if isinstance(v, Tensor) and v.ndim)) for b in batches]
    return HeldOut(
        torch.tensor(losses, dtype=torch.float64), torch.tensor(rows, dtype=torch.float64)
    )


@dataclass(eq=False)
class TrainedState:
    """All that a training changes of a model: trained parameters and buffers, as they were."""

    model: nn.Module
    values: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.values = {n: t.detach().clone() for n, t in self._tensors()}

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        trained = ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)
        return chain(trained, self.model.named_buffers())

    @torch.no_grad()
    def put_back(self) -> None:
        """Make the model what it was."""
        for name, tensor in self._tensors():
            tensor.copy_(self.values[name])


def loss_of_model(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that a model returns, by name or as its first output."""
    outputs = model(**batch)
    loss: Tensor = outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]
    return loss


@dataclass(eq=False)
class BestState:
    """The state of a training at which held-out examples lose least, kept in memory.

    Only what is trained is kept, so it costs a small part of the model.
    """

    model: nn.Module
    batches: Sequence[Batch]
    """Held-out ones."""
    loss: Loss
    steps: int
    """Of the whole training; it is asked eight times."""
    step: int = 0
    """Of the best state."""
    held_out: HeldOut | None = None
    """What the examples lose there."""
    values: TrainedState | None = None

    def ask(self, step: int) -> None:
        """Keep the state after this step if it is the best so far."""
        if step % max(self.steps // _WATCHED, 1) and step != self.steps:
            return
        held_out = held_out_losses(self.model, self.batches, self.loss)
        if self.held_out is None or held_out.mean < self.held_out.mean:
            self.step, self.held_out, self.values = step, held_out, TrainedState(self.model)

    def taken(self, choice: RateChoice) -> RateChoice:
        """Make the model what it was at its best; the choice with that step and loss."""
        if self.held_out is None or self.values is None:
            return choice
        self.values.put_back()
        error = self.held_out.standard_error
        return replace(choice, stop_after=self.step, loss=self.held_out.mean, standard_error=error)

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint."""
        if self.held_out is not None and self.values is not None:
            values = {name: t.cpu() for name, t in self.values.values.items()}
            about = (self.step, self.held_out.losses, self.held_out.rows)
            torch.save((values, about), folder / _BEST)

    def load(self, folder: Path) -> None:
        """Take it from a checkpoint, where one has it."""
        if (folder / _BEST).is_file():
            values, (self.step, losses, rows) = torch.load(folder / _BEST, weights_only=True)
            self.held_out, self.values = HeldOut(losses, rows), TrainedState(self.model)
            self.values.values.update(values)
