"""What is recorded of each step of a stream, as JSON (the folder ``steps`` of a run)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any, Literal

from sharespace.errors import CorruptStoreError
from sharespace.learn import Fit, Trainable
from sharespace.store.layout import Content

How = Literal["adapter", "lora", "data", "both"]


@dataclass(frozen=True)
class Learned:
    """How a task came in."""

    task: str
    how: How
    """``adapter``: merged as it is. ``lora``: as a LoRA of its own, for the first subspace.
    ``data``: in the subspace. ``both``: its adapter was merged, then trained on."""
    labels: tuple[str, ...] = ()
    """Names of the classes, by number."""
    coefficients: int = 0
    """Numbers that were trained, heads left out."""
    temporary: int = 0
    """Numbers of the temporary directions; they are absorbed by the merge."""
    lora: int = 0
    """Numbers of its own LoRA, where ``how`` is that."""
    heads: int = 0
    """Numbers of heads."""
    own_lora: int = 0
    """What a LoRA of the recipe's rank would train at the same modules, heads left out."""
    steps: int = 0
    loss: float | None = None
    """Mean training loss over all steps; None: nothing was trained."""
    seconds: float = 0.0
    """Of training, those of a finetune after the merge included."""
    start: str = "zero"
    """Coefficients that it was learned from: what ``nearest`` chose."""

    @property
    def told(self) -> str:
        """The training, for people."""
        loss = "-" if self.loss is None else f"{self.loss:.3f}"
        return f"{self.steps} steps in {self.seconds:.1f} s, mean loss {loss}"

    def trained(self, fit: Fit, counted: Trainable | None = None) -> dict[str, Any]:
        """The fields that a training run fills in."""
        counts = asdict(counted) if counted else {}
        total = self.seconds + fit.seconds
        return {**counts, "steps": self.steps + fit.steps, "loss": fit.loss, "seconds": total}


@dataclass(frozen=True)
class Step:
    """One step of a stream: the version that it commits, and its scores."""

    number: int
    """From 1."""
    learned: tuple[Learned, ...]
    content: str
    """``content_digest`` of the version; the step is done when the store's current version has
    this content."""
    parent: str | None
    """Of the step before; None: the first."""
    scores: Mapping[str, float | None]
    """Known task with data -> score after the step (higher is better); None: its evaluation data
    was gone."""
    bytes: Mapping[str, int]
    """``basis``, ``coefficients``, ``other``, ``total``, ``adapters``."""
    notices: tuple[str, ...] = ()
    """Why scores are missing."""
    features: Mapping[str, str] = field(default_factory=dict)
    """Task with training data -> name of the file of what a router takes of it; empty where the
    recipe asks for none."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it learned."""
        return tuple(one.task for one in self.learned)

    @property
    def name(self) -> str:
        return "+".join(self.tasks)

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Any, where: str) -> Step:
        """What ``to_record`` gave.

        Raises:
            CorruptStoreError: a field is missing or unknown.
        """
        try:
            learned = tuple(
                Learned(**{**one, "labels": tuple(one["labels"])}) for one in record["learned"]
            )
            notices = tuple(record["notices"])
            return cls(**{**record, "learned": learned, "notices": notices})
        except (TypeError, KeyError) as error:
            raise CorruptStoreError(
                where, f"no record of a step ({error})", "Bring back the file as it was"
            ) from error


def content_digest(content: Content) -> str:
    """Identity of a version's bases, tasks and heads: sha256 (hex) of their names and files' sums.

    Two versions with the same content have the same, a rollback included.
    """
    parts = [content.basis.file]
    for task in content.tasks:
        kept = task.kept.file if task.kept else "-"
        parts += [repr(task.name), task.coefficients.file, kept]
    return sha256("\n".join(parts).encode()).hexdigest()
