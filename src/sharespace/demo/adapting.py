"""Four ways to a task: head only, own LoRA, learned in the subspace, and taken out of a Share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from sharespace.demo.models import HEAD, Base, accuracy, linear_modules, logits, percent
from sharespace.demo.tasks import Examples, Task
from sharespace.extras import require
from sharespace.learn import Method, Training, adapt, fit, load_task
from sharespace.share import Share
from sharespace.subspace.adapter import Adapter


@dataclass(frozen=True, eq=False)
class Job:
    """A task with its data and the base model it adapts."""

    task: Task
    train: Examples
    test: Examples
    base: Base
    seed: int

    def model(self) -> nn.Module:
        """The base model with a head for this task; the same start in all four ways."""
        return self.base.model(self.task.labels, self.seed)

    def seeded(self, training: Training) -> Training:
        return replace(training, seed=self.seed)


@dataclass(frozen=True)
class Trained:
    """What one training run measured."""

    score: float
    """Percent on the test images."""
    trainable: int
    """Numbers that were trained."""


def train_head(job: Job) -> Trained:
    """Nothing but a new head on the frozen base model."""
    model = job.model().requires_grad_(False)
    model.get_submodule(HEAD).requires_grad_(True)
    fit(model, job.train, job.seeded(job.base.settings.head))
    return Trained(accuracy(model, job.test), _trainable(model))


def train_lora(job: Job, folder: Path) -> Trained:
    """A LoRA adapter and head of the task's own, by PEFT, saved to ``folder``.

    Raises:
        MissingExtraError: PEFT is not installed.
    """
    peft = require("peft", "train")
    base, settings = job.model(), job.base.settings
    config = peft.LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_rank,
        target_modules=linear_modules(base),
        modules_to_save=[HEAD],
    )
    model = peft.get_peft_model(base, config)
    fit(model, job.train, job.seeded(settings.lora))
    # "auto" would ask the Hub whether the base model's vocabulary was resized.
    model.save_pretrained(folder, save_embedding_layers=False)
    return Trained(accuracy(model, job.test), _trainable(model))


def learn_in_subspace(job: Job, share: Share) -> tuple[Adapter, Trained]:
    """Coefficients, temporary directions and a head; the bases stay as they are."""
    settings = job.base.settings
    method = Method(p=settings.p, phi=settings.phi, heads=(HEAD,), seed=job.seed)
    learned = adapt(
        job.model(),
        share,
        job.train,
        job.seeded(settings.subspace),
        task=job.task.name,
        method=method,
    )
    trained = Trained(accuracy(learned.model, job.test), learned.trainable.total)
    return learned.adapter, trained


def score_in_share(job: Job, share: Share) -> float:
    """The task as the Share model holds it now: its update and its own head on the base model."""
    return percent(_logits_in_share(job, share), job.test)


def export_difference(job: Job, share: Share, folder: Path) -> float:
    """Export the task as plain LoRA to ``folder`` and load it with PEFT.

    Returns:
        The largest difference of a logit, on the test images, to ``score_in_share``'s.
    """
    peft = require("peft", "train")
    share.export(job.task.name, folder)
    model = peft.PeftModel.from_pretrained(job.model(), folder)
    return float((logits(model, job.test) - _logits_in_share(job, share)).abs().max())


def _logits_in_share(job: Job, share: Share) -> Tensor:
    return logits(load_task(job.model(), share, job.task.name), job.test)


def _trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
