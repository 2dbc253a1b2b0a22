"""The ways to learn a new task from few examples, each as a model to train and to score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from experiments.harness.heads import Head
from experiments.harness.training import subspace, train_lora, with_lora
from experiments.harness.transfer import Watch
from experiments.text_stream.features import TextFeatures, collate
from experiments.text_stream.model import accuracy
from experiments.transfer.tasks import Transfer
from sharespace import Share
from sharespace.compare import ComparisonSettings, OwnLora, TaskJob
from sharespace.compare.lora import PREFIX, fill_lora
from sharespace.learn import TaskMethod, adapt
from sharespace.tuner import release

Kind = Literal["related", "unrelated"]

_BATCH = 64


@dataclass(frozen=True)
class Way:
    """One way to learn a new task."""

    name: str
    known: Kind | None
    """Which tasks are known; None: it uses none."""
    lora: bool = False
    """It trains a LoRA; else a core in the subspace of the known tasks, or in a random one."""
    start: Literal["zero", "task", "auto"] = "zero"
    """Where it starts: from nothing, from the first known task with its head, or where ``adapt``
    chooses, with a fresh head."""
    mixed: bool = False
    """The weights of all known tasks are trained beside the core."""

    def method(self, method: TaskMethod, known: Sequence[str]) -> TaskMethod:
        """What it trains, where that is a core."""
        start = known[0] if self.start == "task" else self.start
        return replace(method, start=start, known=len(known) if self.mixed else 0)


def _ways() -> Iterator[Way]:
    yield Way("own LoRA", None, lora=True)
    yield Way("random basis", None)
    for kind in ("related", "unrelated"):
        yield Way(f"LoRA from the {kind} task's", kind, lora=True, start="task")
        yield Way(f"zero start, {kind} known", kind)
        yield Way(f"{kind} task as start", kind, start="task")
        yield Way(f"mixture and residual, {kind} known", kind, start="task", mixed=True)
        yield Way(f"automatic start, {kind} known", kind, start="auto")


WAYS: Mapping[str, Way] = {way.name: way for way in _ways()}

LORA_RATES = (5e-4, 2e-3, 8e-3)
CORE_RATES = (5e-3, 2e-2, 8e-2)
"""Learning rates that are tried, as many of them for every way; and 0, which trains nothing."""


TEMPERATURES = tuple(2.0 ** (power / 2) for power in range(-2, 13))
"""0.5 to 64, in steps of the square root of 2."""


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model of the new task after its training."""

    model: Any
    """In evaluation mode, with the head; its layers are released after use."""
    numbers: int
    """Numbers that were trained, head left out."""
    curve: Mapping[str, Any] | None
    """``steps`` and ``scores`` on the way, where they were asked for."""


@dataclass(frozen=True, eq=False)
class Learner:
    """A way to learn one new task, with what is known of the others."""

    way: Way
    experiment: Transfer
    task: str
    seed: int
    settings: ComparisonSettings
    known: Mapping[str, OwnLora]
    """Known tasks' own LoRAs, the related or unrelated one first; none where the way has none."""

    @property
    def rates(self) -> tuple[float, ...]:
        """Learning rates to try."""
        return LORA_RATES if self.way.lora else CORE_RATES

    @contextmanager
    def trained(
        self, examples: TextFeatures, rate: float, watch_every: int = 0
    ) -> Iterator[TrainedModel]:
        """The model that is trained on the examples; rate 0 trains nothing.

        Args:
            examples: of the new task.
            rate: learning rate of LoRA or core.
            watch_every: steps between scores on the test examples; 0: none are taken.
        """
        job = self.experiment.few_job(self.task, examples, self.head(examples))
        if not rate:
            with self._as_it_starts(job) as model:
                yield TrainedModel(model, 0, None)
            return
        model = with_lora(job, self.settings) if self.way.lora else job.model()
        watch = Watch(model, job, watch_every) if watch_every else None
        callbacks = [watch] if watch else []
        if self.way.lora:
            if self.way.start == "task":
                fill_lora(model, self._first.adapter)
            training = replace(self.settings.lora, learning_rate=rate)
            numbers = train_lora(job, replace(self.settings, lora=training), model, callbacks)
        else:
            method = replace(self.settings.method, heads=job.heads, seed=self.seed)
            learned = adapt(
                model,
                self._space(job),
                job.data,
                replace(self.settings.coefficients, learning_rate=rate),
                task=self.task,
                method=self.way.method(method, list(self.known)),
                setup=replace(job.setup, callbacks=callbacks),
            )
            model = learned.model
            numbers = learned.trainable.coefficients + learned.trainable.temporary
        try:
            yield TrainedModel(model.eval(), numbers, watch.curve if watch else None)
        finally:
            release(model)

    def test_score(self, model: nn.Module) -> float:
        """Percent of the test examples."""
        return accuracy(model, self.experiment.sets(self.task)[1])

    @contextmanager
    def _as_it_starts(self, job: TaskJob) -> Iterator[Any]:
        """The model before training, with the known task's LoRA where it starts from that."""
        model = with_lora(job, self.settings)
        if self.way.start == "task":
            fill_lora(model, self._first.adapter)
        try:
            yield model.eval()
        finally:
            release(model)

    @property
    def _first(self) -> OwnLora:
        return next(iter(self.known.values()))

    def _space(self, job: TaskJob) -> Share:
        """The Share model of the known tasks, or a random basis of the same size."""
        return subspace(job, self.settings, list(self.known.values()))

    def head(self, examples: TextFeatures) -> Head:
        """The head that it starts from: the known task's where it has all labels, or a fresh one.

        A fresh one is trained on what the start makes of the examples, the same for LoRA and core.
        """
        experiment = self.experiment
        if self.way.start != "task":
            return experiment.fresh_head(self.task, examples.pooled, examples.labels, self.seed)
        name = next(iter(self.known))
        labels, wanted = experiment.labels(name), experiment.labels(self.task)
        if set(wanted) <= set(labels):
            rows = [labels.index(label) for label in wanted]
            return known_head(self._first, examples.pooled, len(labels), rows)
        blank = Head(examples.pooled, len(wanted))
        with self._as_it_starts(experiment.few_job(self.task, examples, blank)) as model:
            pooled = head_inputs(model, examples)
        return experiment.fresh_head(self.task, pooled, examples.labels, self.seed)


def known_head(known: OwnLora, features: Tensor, outputs: int, rows: Sequence[int]) -> Head:
    """A known task's trained head, its outputs in another order.

    Args:
        known: the task's own LoRA, with its head.
        features: of any examples; their statistics are replaced.
        outputs: of the known head.
        rows: which of them the new head has, in its order.
    """
    head = Head(features, outputs)
    kept = {key.removeprefix(f"{PREFIX}classifier."): t for key, t in known.adapter.kept.items()}
    head.load_state_dict(kept)
    chosen = Head(features, len(rows))
    chosen.load_state_dict(
        {**kept, "weight": kept["weight"][list(rows)], "bias": kept["bias"][list(rows)]}
    )
    return chosen


@torch.no_grad()
def head_inputs(model: nn.Module, examples: TextFeatures) -> Tensor:
    """float32 [examples, width]: what a model gives to its head."""
    taken: list[Tensor] = []
    # PEFT keeps the head as it came beside the one that is used.
    heads = [m for m in model.modules() if isinstance(m, Head)]
    handles = [
        head.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].float()))
        for head in heads
    ]
    try:
        for _ in outputs_of(model, examples):
            pass
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(taken)


@torch.no_grad()
def outputs_of(model: nn.Module, examples: TextFeatures) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels, a batch at a time."""
    for begin in range(0, len(examples), _BATCH):
        rows = range(begin, min(begin + _BATCH, len(examples)))
        batch = collate([examples[i] for i in rows])
        labels = batch.pop("labels")
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**batch)["logits"]
        yield logits.float(), labels


def loss_of(model: nn.Module, examples: TextFeatures) -> float:
    """Mean cross-entropy of the examples at the best temperature.

    A head that was trained on few examples is far too sure. Without the temperature, training
    that makes it right more often, and surer, has the larger loss.
    """
    pairs = list(outputs_of(model, examples))
    logits, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
    return min(
        float(nn.functional.cross_entropy(logits / temperature, labels))
        for temperature in TEMPERATURES
    )
