"""What a compared method is given and what it gives back.

It is given tasks (``TaskJob``: data, model, score) and the numbers of all trainings
(``ComparisonSettings``), and gives back an ``Outcome``: scores, what was trained, what is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

from torch import nn

from sharespace.compare.comparison import ComparisonRow, Cost
from sharespace.errors import OptionError
from sharespace.learn import Setup, TaskMethod, TrainingSettings
from sharespace.options import check_options, option
from sharespace.share import Share
from sharespace.stream.measures import ScoreMatrix
from sharespace.subspace.adapter import Adapter


@dataclass(frozen=True, eq=False)
class TaskJob:
    """One task: its data, the model that it adapts, and how it is scored.

    Whatever the modality: the model takes the examples' fields and returns a loss, as the Trainer
    wants it.

    Raises:
        OptionError: the name is empty, or steps or rate are not above 0.
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
    steps: int | None = option(None, least=1)
    """Steps of its training; None: those of each ``TrainingSettings``."""
    rate: float = option(1.0, above=0)
    """Factor on the learning rates of each ``TrainingSettings``."""
    setup: Setup = field(default_factory=Setup)
    """Collator, evaluation data, callbacks and the like."""
    labels: tuple[str, ...] = ()
    """Names of the classes in the order of the head's outputs; empty: none are known."""

    def __post_init__(self) -> None:
        if not self.name:
            raise OptionError("task ''", "a task's name must not be empty", "Give it a name")
        check_options(self)
        object.__setattr__(self, "heads", tuple(self.heads))


@dataclass(frozen=True)
class ComparisonSettings:
    """Numbers that all methods of one comparison have in common.

    Raises:
        OptionError: one is out of range, or a training counts by epochs.
    """

    head: TrainingSettings = option()
    """Training of the head alone, at its ``learning_rate`` (without ``head_learning_rate``)."""
    lora: TrainingSettings = option()
    """Training of LoRA factors: own, joint, sequential, O-LoRA, EWC, replay."""
    coefficients: TrainingSettings = option()
    """Training of coefficients in the subspace (Share, random basis)."""
    finetune: TrainingSettings | None = option(None)
    """Share-full's last step: steps and rate are these for every job. None: as ``coefficients``,
    where a job may have its own."""
    held_out: float = option(0.0, least=0, below=1)
    """Part of a task's examples that Share-full's last step sets aside; what it trains is kept only
    where it is better on them. 0: always kept."""
    osf: TrainingSettings | None = option(None)
    """OSF, which trains whole weights and wants a smaller learning rate; None: as ``lora``."""
    warm: TrainingSettings | None = option(None)
    """LoRAs that start from an earlier task's; None: as ``lora``."""
    method: TaskMethod = option(TaskMethod(start="zero", head_steps=0))
    """What a task that is learned in the subspace trains; its heads and seed are those of each job
    and of this comparison. The heads are trained already, by the method ``head_only``."""
    targets: Sequence[str] | str = "all-linear"
    """PEFT's ``target_modules``; heads are left out whatever it says."""
    rank: int = option(8, least=1)
    """r of LoRA."""
    lora_alpha: float | None = option(None, above=0)
    """None: as the rank (scaling 1)."""
    lora_dropout: float = option(0.0, least=0, below=1)
    """Dropout before LoRA; before coefficients it is ``method.dropout``."""
    k: int = option(32, least=1)
    """Cap of the subspace's dimension, every module and side."""
    initial: int = option(3, least=1)
    """Number of tasks that Share is built from, by their own LoRAs; the first of the stream."""
    build: Callable[[Sequence[Adapter]], Share] | None = None
    """Makes the Share model of the first tasks' LoRAs; None: dimension k, exact otherwise."""
    seed: int = option(0, least=0)
    """Seed of everything random; goes before the seeds of the trainings and of ``method``."""
    orthogonality: float = option(0.5, least=0)
    """O-LoRA's lambda_1."""
    ewc: float = option(1000.0, least=0)
    """EWC's lambda."""
    fisher_examples: int = option(200, least=1)
    """Examples of each task that its Fisher information is taken over."""
    replay: float = option(0.02, above=0, most=1)
    """Part of every earlier task's examples that experience replay keeps."""
    arithmetic: float = option(0.4)
    """Task arithmetic's lambda."""
    density: float = option(0.2, above=0, most=1)
    """Part of the entries that TIES keeps."""
    ties: Literal["ties", "ties_svd"] = option("ties_svd")
    """PEFT's combination: ``"ties_svd"`` (of the updates, cut to the rank) or ``"ties"`` (of the
    factors A and B, each alone: cheap, not what the paper of TIES means)."""

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("head", "lora", "coefficients", "finetune", "osf", "warm"):
            training = getattr(self, name)
            if training is not None and training.max_steps < 1:
                # Several methods divide the steps among tasks, before any Trainer counts epochs.
                raise OptionError(f"{name}.max_steps", "counts by epochs", "Give a number of steps")

    @property
    def alpha(self) -> float:
        """PEFT's ``lora_alpha``."""
        return self.rank if self.lora_alpha is None else self.lora_alpha

    def training(self, settings: TrainingSettings, job: TaskJob) -> TrainingSettings:
        """One of the trainings with the seed of all and the task's own steps and rate."""
        if settings is self.finetune:
            return replace(settings, seed=self.seed)
        head = settings.head_learning_rate
        return replace(
            settings,
            seed=self.seed,
            max_steps=job.steps or settings.max_steps,
            learning_rate=settings.rate * job.rate,
            head_learning_rate=None if head is None else head * job.rate,
        )

    def to_record(self) -> dict[str, Any]:
        """The numbers as JSON values, those of ``method`` beside the others."""
        record = asdict(replace(self, build=None))
        del record["build"]
        method = record.pop("method")
        return {**record, **{n: method[n] for n in _RECORDED}}


_RECORDED = ("p", "phi", "form", "directions", "head_steps", "start", "dropout")
"""Fields of ``TaskMethod`` in a record: all that no job has for itself."""


@dataclass(frozen=True)
class StoredBytes:
    """Bytes of tensors that all tasks need beside the base model, in the dtype they are kept in.

    Of a Share model, ledgers and headers are not counted; ``bytes_on_disk`` of its store has them.
    """

    adapters: int = 0
    """LoRA factors, factors of layers that are stored per task, changed weights."""
    basis: int = 0
    """Bytes of the bases of the subspace."""
    coefficients: int = 0
    """Coefficients of all tasks in the subspace."""
    heads: int = 0
    """Bytes of the heads of all tasks."""
    state: int = 0
    """What only the learning of further tasks needs (Fisher information, kept examples); not in
    the total."""

    @property
    def total(self) -> int:
        """All of them, ``state`` left out."""
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
    """Seconds of training, own LoRAs included where the method starts from them."""
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
        """What the method takes, for the table of a comparison."""
        numbers = {t: n + self.heads[t] for t, n in self.trainable.items()}
        return Cost(
            trainable=fmean(self.trainable.values()),
            trainable_with_heads=fmean(numbers.values()),
            nbytes=self.stored.total,
            paper_count=self.paper_count,
            seconds=self.seconds,
        )

    def row(
        self,
        *,
        own: Mapping[str, float] | None = None,
        head: Mapping[str, float] | None = None,
        seed: int = 0,
        order: str = "",
    ) -> ComparisonRow:
        """The run as a row of ``Comparison``.

        Args:
            own: task -> score of own LoRA.
            head: task -> score of the head alone.
            seed: of the run.
            order: of its tasks.
        """
        return ComparisonRow.from_matrix(
            self.method, self.matrix, self.cost, own=own, head=head, seed=seed, order=order
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Outcome:
        """The outcome that ``to_record`` made a record of: no adapters, and no Share model.

        Raises:
            OptionError: the record does not fit.
        """
        try:
            fields = dict(record)
            matrix = ScoreMatrix.from_record(fields.pop("matrix"))
            stored = {name: size for name, size in fields.pop("stored").items() if name != "total"}
            return cls(matrix=matrix, stored=StoredBytes(**stored), **fields)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise OptionError("outcome", f"its record does not fit: {error}") from error

    def to_record(self) -> dict[str, Any]:
        """The outcome as JSON values, without adapters and the Share model."""
        return {
            "method": self.method,
            "matrix": self.matrix.to_record(),
            "trainable": dict(self.trainable),
            "heads": dict(self.heads),
            "stored": {**asdict(self.stored), "total": self.stored.total},
            "seconds": self.seconds,
            "steps": self.steps,
            "paper_count": self.paper_count,
            "uses_old_data": self.uses_old_data,
        }
