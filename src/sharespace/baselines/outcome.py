"""What a method gives back: scores, what was trained, what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from sharespace.evaluate import Cost, Row, ScoreMatrix
from sharespace.share import Share
from sharespace.subspace.adapter import Adapter


@dataclass(frozen=True)
class Stored:
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

    method: str
    matrix: ScoreMatrix
    """Percent; one step for methods that do not depend on the order."""
    trainable: Mapping[str, int]
    """Task -> numbers trained at once for it, heads excluded."""
    heads: Mapping[str, int]
    """Task -> numbers of its heads."""
    stored: Stored
    seconds: float
    """Of training, own LoRAs included where the method starts from them."""
    steps: int
    """Optimizer steps of all tasks together, counted like ``seconds``."""
    paper_count: float | None = None
    """Coefficients that a task trains, mean; None for methods without."""
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
    ) -> Row:
        """The run as a row of ``evaluate.Comparison``.

        Args:
            own: task -> score of own LoRA.
            head: task -> score of the head alone.
            seed: of the run.
            order: of its tasks.
        """
        return Row.from_matrix(
            self.method, self.matrix, self.cost, own=own, head=head, seed=seed, order=order
        )

    def to_record(self) -> dict[str, Any]:
        """JSON values, without adapters and the Share model."""
        stored = {name: getattr(self.stored, name) for name in Stored.__dataclass_fields__}
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
