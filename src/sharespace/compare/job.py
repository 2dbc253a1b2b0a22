"""What a method is given: tasks with data, models and scores, and the numbers of the training.

What a method gives back: scores, what was trained, what is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

from torch import nn

from sharespace.compare.comparison import ComparisonRow, Cost
from sharespace.errors import OptionError
from sharespace.learn import Setup, TrainingSettings
from sharespace.share import Share
from sharespace.stream.measures import ScoreMatrix
from sharespace.subspace.adapter import Adapter


@dataclass(frozen=True, eq=False)
class TaskJob:
    """One task: its data, the model that it adapts, and how it is scored.

    Whatever the modality: the model takes the examples' fields and returns a loss, as the Trainer
    wants it. Raises OptionError for an empty name or a rate that is not above 0.
    """

    name: str
    data: Any
    """Training examples, as ``sharespace.learn.fit`` takes them."""
    model: Callable[[], nn.Module]
    """The base model with a fresh head for this task, the same at every call (seeded). All jobs'
    models have the same weights outside their heads."""
    score: Callable[[nn.Module], float]
    """A model in evaluation mode -> percent on held-out examples; higher is better."""
    heads: tuple[str, ...] = ("classifier",)
    """Modules of the model that belong to this task and are trained whole; may be none."""
    steps: int | None = None
    """Steps of its training; None: those of each ``TrainingSettings``."""
    rate: float = 1.0
    """Factor on the learning rates of each ``TrainingSettings``."""
    setup: Setup = field(default_factory=Setup)
    """Collator, evaluation data, callbacks and the like."""

    def __post_init__(self) -> None:
        if not self.name:
            raise OptionError("task ''", "a task's name must not be empty", "Give it a name")
        _require(self.rate > 0, "rate", self.rate, "above 0")
        object.__setattr__(self, "heads", tuple(self.heads))


@dataclass(frozen=True)
class ComparisonSettings:
    """Numbers that all methods of one comparison have in common.

    Raises OptionError where one is out of range.
    """

    head: TrainingSettings
    """Of the head alone, which learns at its ``learning_rate`` (no ``head_learning_rate``)."""
    lora: TrainingSettings
    """Of everything that trains LoRA factors: own, joint, sequential, O-LoRA, EWC, replay."""
    coefficients: TrainingSettings
    """Of coefficients in the subspace (Share, random basis)."""
    finetune: TrainingSettings | None = None
    """Of Share-full's last step: steps and rate are these for every job. None: as
    ``coefficients``, where a job may have its own."""
    held_out: float = 0.0
    """Part of a task's examples that Share-full's last step sets aside; what it trains is kept only
    where it is better on them. 0: always kept."""
    osf: TrainingSettings | None = None
    """Of OSF, which trains whole weights and wants a smaller learning rate; None: as ``lora``."""
    targets: Sequence[str] | str = "all-linear"
    """PEFT's ``target_modules``; heads are left out whatever it says."""
    rank: int = 8
    lora_alpha: float | None = None
    """None: as the rank (scaling 1)."""
    dropout: float = 0.0
    """Of LoRA and of coefficients."""
    k: int = 32
    """Cap of the subspace's dimension, every module and side."""
    p: int = 8
    """Pseudo-rank of tasks learned in the subspace."""
    phi: int = 2
    """Temporary directions a side."""
    start: str = "zero"
    """Where a task in the subspace starts (``sharespace.learn.TaskMethod``)."""
    form: Literal["factors", "core"] = "factors"
    """What a task in the subspace trains (``sharespace.learn.TaskMethod``)."""
    directions: Literal["random", "gradient"] = "random"
    """How the directions of the form "core" are chosen."""
    initial: int = 3
    """Tasks that Share is built from, by their own LoRAs; the first of the stream."""
    seed: int = 0
    """Of everything random; wins over the seeds of each ``TrainingSettings``."""
    orthogonality: float = 0.5
    """O-LoRA's lambda_1."""
    ewc: float = 1000.0
    """EWC's lambda."""
    fisher_examples: int = 200
    """Examples of each task that its Fisher information is taken over."""
    replay: float = 0.02
    """Part of every earlier task's examples that experience replay keeps."""
    arithmetic: float = 0.4
    """Task arithmetic's lambda."""
    density: float = 0.2
    """Part of the entries that TIES keeps."""
    ties: str = "ties_svd"
    """PEFT's combination: ``"ties_svd"`` (of the updates, cut to the rank) or ``"ties"`` (of the
    factors A and B, each alone: cheap, not what the paper of TIES means)."""

    def __post_init__(self) -> None:
        for name in ("head", "lora", "coefficients", "finetune", "osf"):
            training = getattr(self, name)
            if training is not None:
                # Several methods divide the steps among tasks, before any Trainer counts epochs.
                _require(training.max_steps > 0, f"{name}.max_steps", -1, "given, not by epochs")
        for name in ("rank", "k", "p", "initial", "fisher_examples"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("phi", "orthogonality", "ewc"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("replay", "density"):
            _require(0 < getattr(self, name) <= 1, name, getattr(self, name), "in (0, 1]")
        _require(0 <= self.held_out < 1, "held_out", self.held_out, "in [0, 1)")
        _require(self.ties in ("ties", "ties_svd"), "ties", self.ties, "'ties' or 'ties_svd'")

    @property
    def alpha(self) -> float:
        """PEFT's ``lora_alpha``."""
        return self.rank if self.lora_alpha is None else self.lora_alpha

    def training(self, chosen: TrainingSettings, job: TaskJob) -> TrainingSettings:
        """One of the trainings with the seed of all and the task's own steps and rate."""
        if chosen is self.finetune:
            return replace(chosen, seed=self.seed)
        head = chosen.head_learning_rate
        return replace(
            chosen,
            seed=self.seed,
            max_steps=job.steps or chosen.max_steps,
            learning_rate=chosen.learning_rate * job.rate,
            head_learning_rate=None if head is None else head * job.rate,
        )


def _require(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise OptionError(f"{name}={value!r}", f"it must be {wanted}", "Change it")


@dataclass(frozen=True)
class StoredBytes:
    """Bytes of tensors that all tasks need beside the base model, in the dtype they are kept in.

    Of a Share model, ledgers and headers are not counted; ``bytes_on_disk`` of its store has them.
    """

    adapters: int = 0
    """LoRA factors, private factors, changed weights."""
    basis: int = 0
    """Bases of the subspace."""
    coefficients: int = 0
    heads: int = 0
    state: int = 0
    """What only the learning of further tasks needs (Fisher information, kept examples); not in
    the total."""

    @property
    def total(self) -> int:
        return self.adapters + self.basis + self.coefficients + self.heads


@dataclass(frozen=True, eq=False)
class Outcome:
    """One run of one method over a stream of tasks."""

    matrix: ScoreMatrix
    """Percent; one step for methods that do not depend on the order."""
    trainable: Mapping[str, int]
    """Task -> numbers trained at once for it, heads excluded."""
    heads: Mapping[str, int]
    """Task -> numbers of its heads."""
    stored: StoredBytes
    seconds: float
    """Of training, own LoRAs included where the method starts from them."""
    steps: int
    """Optimizer steps of all tasks together, counted like ``seconds``."""
    paper_count: float | None = None
    """Coefficients only (as the paper counts): numbers that a task trains, mean; None for methods
    without."""
    method: str = ""
    """Name of the method, from its registration; likewise ``uses_old_data``."""
    uses_old_data: bool = False
    """True where a step reads examples of earlier tasks."""
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    """Task -> adapter, where there is one a task."""
    share: Share | None = None
    history: tuple[Share, ...] = ()
    """Share after each step, where the method has steps."""

    @property
    def cost(self) -> Cost:
        """For the table of an experiment."""
        numbers = {t: n + self.heads[t] for t, n in self.trainable.items()}
        return Cost(
            trainable=fmean(self.trainable.values()),
            trainable_with_heads=fmean(numbers.values()),
            nbytes=self.stored.total,
            paper_count=self.paper_count,
        )

    def row(
        self,
        *,
        own: Mapping[str, float] | None = None,
        head: Mapping[str, float] | None = None,
        seed: int = 0,
        order: str = "",
    ) -> ComparisonRow:
        """The run as a row of ``evaluate.Comparison``.

        Args:
            own: task -> score of own LoRA.
            head: task -> score of the head alone.
            seed: of the run.
            order: of its tasks.
        """
        return ComparisonRow.from_matrix(
            self.method, self.matrix, self.cost, own=own, head=head, seed=seed, order=order
        )

    def to_record(self) -> dict[str, Any]:
        """JSON values, without adapters and the Share model."""
        stored = {name: getattr(self.stored, name) for name in StoredBytes.__dataclass_fields__}
        return {
            "method": self.method,
            "matrix": self.matrix.to_record(),
            "trainable": dict(self.trainable),
            "heads": dict(self.heads),
            "stored": {**stored, "total": self.stored.total},
            "seconds": self.seconds,
            "steps": self.steps,
            "paper_count": self.paper_count,
            "uses_old_data": self.uses_old_data,
        }
