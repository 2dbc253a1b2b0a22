"""The demo's tasks: handwritten digits (scikit-learn's ``load_digits``) seen in other ways.

1797 real images of 8 x 8 pixels, E. Alpaydin and C. Kaynak, UCI repository, 1998.

The demo's small vision transformer, pretrained here, and its scores.

Four ways to a task: head only, own LoRA, learned in the subspace, and taken out of a Share.

The demo's numbers: sizes of the model, of the subspace, and how everything is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sharespace.extras import require
from sharespace.learn import TaskMethod, TrainingSettings, adapt, fit, load_task
from sharespace.share import Share
from sharespace.subspace.adapter import Adapter

SIDE = 8

_MEAN, _DEVIATION = 0.3, 0.37  # of the pixels, scaled to [0, 1]


@dataclass(frozen=True)
class Task:
    """Images changed in one way, with labels of its own."""

    name: str
    description: str
    view: Callable[[Tensor], Tensor]
    """Images (count, 8, 8) in [0, 1] -> the same shape."""
    label: Callable[[Tensor], Tensor]
    """Digits (count,) -> labels."""
    labels: int = 10


def _same(values: Tensor) -> Tensor:
    return values


PLAIN = Task("plain", "the digits as they are", _same, _same)
"""What the base model is pretrained on."""


def _rotated(images: Tensor) -> Tensor:
    return images.rot90(1, (1, 2))


def _faint(images: Tensor) -> Tensor:
    return 0.2 * images


def _shuffled(images: Tensor) -> Tensor:
    order = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(5))
    return images.flatten(1)[:, order].view_as(images)


def _checkerboard(images: Tensor) -> Tensor:
    square = torch.arange(SIDE)
    return images * ((square[:, None] + square) % 2 * 2 - 1)


def _mirrored(images: Tensor) -> Tensor:
    return images.flip(2)


def _shifted(images: Tensor) -> Tensor:
    return images.roll((SIDE // 2, SIDE // 2), (1, 2))


def _five_or_more(digits: Tensor) -> Tensor:
    return (digits >= 5).long()


TASKS = (
    Task("rotated", "turned by 90 degrees", _rotated, _same),
    Task("faint", "a fifth of the contrast", _faint, _same),
    Task("shuffled", "pixels in another order", _shuffled, _same),
    Task("checkerboard", "every other pixel negated", _checkerboard, _same),
    Task("mirrored", "left and right swapped", _mirrored, _same),
    Task("shifted", "by half an image: is it 5 or more?", _shifted, _five_or_more, labels=2),
)
"""In the order in which they come."""

HEAD = "classifier"


@dataclass(frozen=True)
class Settings:
    """One run."""

    hidden: int
    layers: int
    heads: int
    train_images: int
    """The rest of the 1797 images is for testing."""
    tasks: int
    built_from: int
    """Tasks that come as finished adapters; the others are learned in the subspace."""
    lora_rank: int
    k: int
    """Subspace dimension of every layer and side, and the cap of the merges."""
    p: int
    """Pseudo-rank of the tasks learned in the subspace."""
    phi: int
    """Temporary directions a side."""
    pretrain: TrainingSettings
    head: TrainingSettings
    lora: TrainingSettings
    subspace: TrainingSettings


def _training(
    max_steps: int, rate: float, *, batch_size: int = 64, weight_decay: float = 0.01
) -> TrainingSettings:
    return TrainingSettings(
        max_steps=max_steps,
        learning_rate=rate,
        per_device_train_batch_size=batch_size,
        weight_decay=weight_decay,
        lr_scheduler_type="cosine",
        use_cpu=True,
    )


FULL = Settings(
    hidden=64,
    layers=4,
    heads=4,
    train_images=1200,
    tasks=6,
    built_from=4,
    lora_rank=8,
    k=16,
    p=4,
    phi=1,
    pretrain=_training(400, 2e-3, weight_decay=0.05),
    head=_training(150, 2e-2),
    lora=_training(200, 1e-2),
    subspace=_training(200, 1e-2),
)

QUICK = Settings(
    hidden=16,
    layers=1,
    heads=2,
    train_images=1500,
    tasks=3,
    built_from=2,
    lora_rank=2,
    k=4,
    p=2,
    phi=1,
    pretrain=_training(150, 1e-2, batch_size=32),
    head=_training(20, 2e-2, batch_size=32),
    lora=_training(40, 2e-2, batch_size=32),
    subspace=_training(40, 4e-2, batch_size=32),
)
"""Too short to learn well: for tests."""


class Examples(Dataset[dict[str, Tensor]]):
    """Images (count, 1, 8, 8), standardised, and labels (count,), under the model's names."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = ((images - _MEAN) / _DEVIATION)[:, None]
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


@dataclass(frozen=True, eq=False)
class Digits:
    """The images, shuffled and split."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def examples(self, task: Task) -> tuple[Examples, Examples]:
        """(train, test) of a task."""
        train, test = (Examples(task.view(x), task.label(y)) for x, y in (self.train, self.test))
        return train, test


def load(train_images: int, seed: int) -> Digits:
    """The digits; the same split for every task.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    bunch: Any = require("sklearn.datasets", "train").load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32) / 16
    digits = torch.tensor(bunch.target, dtype=torch.long)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    train, test = order[:train_images], order[train_images:]
    return Digits((images[train], digits[train]), (images[test], digits[test]))


@dataclass(frozen=True, eq=False)
class Base:
    """The pretrained backbone; every task gets a fresh head on a copy of it."""

    name: str
    """What adapters call their base model: its folder, seen from where the demo was started."""
    settings: Settings
    backbone: Mapping[str, Tensor]
    accuracy: float
    """Percent, on the plain digits it was pretrained on."""

    def model(self, labels: int, seed: int) -> nn.Module:
        """The pretrained model with a new, random head."""
        torch.manual_seed(seed)
        model: Any = _new_model(self.settings, labels)
        model.load_state_dict(dict(self.backbone), strict=False)
        model.name_or_path = self.name
        ready: nn.Module = model.eval()
        return ready


def pretrain(digits: Digits, settings: Settings, folder: Path) -> Base:
    """Train the base model on the plain digits and save it to ``folder``.

    Raises:
        MissingExtraError: transformers or accelerate is not installed.
    """
    train, test = digits.examples(PLAIN)
    model = _new_model(settings, PLAIN.labels)
    fit(model, train, settings.pretrain)
    model.save_pretrained(folder)
    state = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith(HEAD)}
    return Base(f"{folder.parent.name}/{folder.name}", settings, state, accuracy(model, test))


def _new_model(settings: Settings, labels: int) -> Any:
    transformers = require("transformers", "train")
    config = transformers.ViTConfig(
        image_size=SIDE,
        patch_size=2,
        num_channels=1,
        hidden_size=settings.hidden,
        intermediate_size=2 * settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=labels,
    )
    return transformers.ViTForImageClassification(config)


def linear_modules(model: nn.Module) -> list[str]:
    """What is adapted: every linear module but the head."""
    found = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    return [name for name in found if not name.startswith(HEAD)]


@torch.no_grad()
def logits(model: nn.Module, examples: Examples) -> Tensor:
    """(count, labels), in evaluation mode."""
    result: Tensor = model.eval()(pixel_values=examples.images).logits
    return result


def accuracy(model: nn.Module, examples: Examples) -> float:
    """Percent of the examples whose largest logit is the label."""
    return percent(logits(model, examples), examples)


def percent(scores: Tensor, examples: Examples) -> float:
    """Percent of the rows whose largest entry is the label."""
    return 100 * float((scores.argmax(dim=1) == examples.labels).float().mean())


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

    def seeded(self, training: TrainingSettings) -> TrainingSettings:
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
    method = TaskMethod(p=settings.p, phi=settings.phi, heads=(HEAD,), seed=job.seed)
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
