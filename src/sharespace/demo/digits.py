"""The demo's tasks: handwritten digits (scikit-learn's ``load_digits``) seen in other ways.

1797 real images of 8 x 8 pixels, E. Alpaydin and C. Kaynak, UCI repository, 1998. Every task
changes the images in one way and adapts a small vision transformer, which is pretrained here on the
digits as they are.
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
from sharespace.learn import Adapted, TaskMethod, TrainingSettings, adapt, fit, load_task
from sharespace.share import Share

SIDE = 8

HEAD = "classifier"

_MEAN, _DEVIATION = 0.3, 0.37
"""Mean and standard deviation of the pixels, scaled to [0, 1]."""


@dataclass(frozen=True)
class DigitView:
    """One way to see the digits, and what is asked of them."""

    name: str
    description: str
    view: Callable[[Tensor], Tensor] = lambda images: images
    """Images (count, 8, 8) in [0, 1] -> the same shape."""
    label: Callable[[Tensor], Tensor] = lambda digits: digits
    """Digits (count,) -> labels (count,)."""
    labels: int = 10


def _shuffled(images: Tensor) -> Tensor:
    order = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(5))
    return images.flatten(1)[:, order].view_as(images)


def _checkerboard(images: Tensor) -> Tensor:
    square = torch.arange(SIDE)
    return images * ((square[:, None] + square) % 2 * 2 - 1)


PLAIN = DigitView("plain", "the digits as they are")
"""What the base model is pretrained on."""

VIEWS = (
    DigitView("rotated", "turned by 90 degrees", lambda images: images.rot90(1, (1, 2))),
    DigitView("faint", "a fifth of the contrast", lambda images: 0.2 * images),
    DigitView("shuffled", "pixels in another order", _shuffled),
    DigitView("checkerboard", "every other pixel negated", _checkerboard),
    DigitView("mirrored", "left and right swapped", lambda images: images.flip(2)),
    DigitView(
        "shifted",
        "by half an image: is it 5 or more?",
        lambda images: images.roll((SIDE // 2, SIDE // 2), (1, 2)),
        lambda digits: (digits >= 5).long(),
        labels=2,
    ),
)
"""In the order in which their tasks come."""


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the model and of the subspace, and how everything is trained."""

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
    method: TaskMethod
    """What a task that is learned in the subspace trains."""
    pretrain: TrainingSettings
    head: TrainingSettings
    lora: TrainingSettings
    subspace: TrainingSettings


def _training(steps: int, rate: float, batch: int = 64, decay: float = 0.01) -> TrainingSettings:
    return TrainingSettings(
        max_steps=steps,
        learning_rate=rate,
        per_device_train_batch_size=batch,
        weight_decay=decay,
        lr_scheduler_type="cosine",
        use_cpu=True,
    )


FULL = DemoSettings(
    hidden=64,
    layers=4,
    heads=4,
    train_images=1200,
    tasks=6,
    built_from=4,
    lora_rank=8,
    k=16,
    method=TaskMethod(p=4, phi=1, form="factors", start="zero", heads=(HEAD,)),
    pretrain=_training(400, 2e-3, decay=0.05),
    head=_training(150, 2e-2),
    lora=_training(200, 1e-2),
    subspace=_training(200, 1e-2),
)

QUICK = DemoSettings(
    hidden=16,
    layers=1,
    heads=2,
    train_images=1500,
    tasks=3,
    built_from=2,
    lora_rank=2,
    k=4,
    method=TaskMethod(p=2, phi=1, form="factors", start="zero", heads=(HEAD,)),
    pretrain=_training(60, 1e-2, batch=32),
    head=_training(10, 2e-2, batch=32),
    lora=_training(20, 2e-2, batch=32),
    subspace=_training(20, 4e-2, batch=32),
)
"""Too short to learn well: for tests."""


class DigitExamples(Dataset[dict[str, Tensor]]):
    """Images (count, 1, 8, 8), standardised, and labels (count,), under the model's names."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = ((images - _MEAN) / _DEVIATION)[:, None]
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}

    @torch.no_grad()
    def logits(self, model: nn.Module) -> Tensor:
        """What a model says to all images: float32 (count, labels)."""
        logits: Tensor = model.eval()(pixel_values=self.images).logits
        return logits

    def accuracy(self, model: nn.Module) -> float:
        """Percent of the images whose largest logit is the label."""
        return 100 * float((self.logits(model).argmax(dim=1) == self.labels).float().mean())


class Digits:
    """The images, shuffled and split in the same way for all tasks."""

    def __init__(self, train_images: int, seed: int) -> None:
        bunch: Any = require("sklearn.datasets", "train").load_digits()
        images = torch.tensor(bunch.images, dtype=torch.float32) / 16
        digits = torch.tensor(bunch.target, dtype=torch.long)
        order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
        train, test = order[:train_images], order[train_images:]
        self.splits = (images[train], digits[train]), (images[test], digits[test])

    def examples(self, view: DigitView) -> tuple[DigitExamples, DigitExamples]:
        """(train, test) in one view."""
        train, test = (DigitExamples(view.view(x), view.label(y)) for x, y in self.splits)
        return train, test


@dataclass(frozen=True, eq=False)
class PretrainedViT:
    """The pretrained backbone; every task gets a fresh head on a copy of it."""

    name: str
    """What adapters call their base model: its folder, seen from where the demo was started."""
    settings: DemoSettings
    backbone: Mapping[str, Tensor]
    accuracy: float
    """Percent, on the plain digits it was pretrained on."""

    def model(self, labels: int, seed: int) -> nn.Module:
        """The pretrained model with a new, random head."""
        torch.manual_seed(seed)
        model = _new_model(self.settings, labels)
        model.load_state_dict(dict(self.backbone), strict=False)
        model.name_or_path = self.name
        ready: nn.Module = model.eval()
        return ready


def pretrain(digits: Digits, settings: DemoSettings, folder: Path) -> PretrainedViT:
    """Train the base model on the plain digits and save it to ``folder``."""
    train, test = digits.examples(PLAIN)
    model = _new_model(settings, PLAIN.labels)
    fit(model, train, settings.pretrain)
    model.save_pretrained(folder)
    state = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith(HEAD)}
    name = f"{folder.parent.name}/{folder.name}"
    return PretrainedViT(name, settings, state, test.accuracy(model))


def _new_model(settings: DemoSettings, labels: int) -> Any:
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


class DigitTask:
    """One view as a task with its data, and the ways to learn and use it.

    Args:
        view: of the digits.
        digits: all images.
        base: the model that it adapts.
        seed: of its head and of all its trainings.
    """

    def __init__(self, view: DigitView, digits: Digits, base: PretrainedViT, seed: int) -> None:
        self.view, self.base, self.seed = view, base, seed
        self.train, self.test = digits.examples(view)

    def model(self) -> nn.Module:
        """The base model with a head for this task: the same start in all ways."""
        return self.base.model(self.view.labels, self.seed)

    def train_head(self) -> float:
        """Percent with nothing but a new head, trained on the frozen base model."""
        model = self.model().requires_grad_(False)
        model.get_submodule(HEAD).requires_grad_(True)
        self._fit(model, self.base.settings.head)
        return self.test.accuracy(model)

    def train_lora(self, folder: Path) -> tuple[float, int]:
        """A LoRA adapter and head of the task's own, by PEFT, saved to ``folder``.

        Returns:
            Percent, and how many numbers were trained.
        """
        peft = require("peft", "train")
        model, rank = self.model(), self.base.settings.lora_rank
        linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=[name for name in linear if not name.startswith(HEAD)],
            modules_to_save=[HEAD],
        )
        wrapped = peft.get_peft_model(model, config)
        self._fit(wrapped, self.base.settings.lora)
        # "auto", the default, would ask the Hub whether the base model's vocabulary was resized.
        wrapped.save_pretrained(folder, save_embedding_layers=False)
        trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
        return self.test.accuracy(wrapped), trained

    def learn(self, share: Share) -> Adapted:
        """Coefficients, temporary directions and a head; the bases stay as they are."""
        settings = self.base.settings
        method = replace(settings.method, seed=self.seed)
        training = replace(settings.subspace, seed=self.seed)
        model, name = self.model(), self.view.name
        return adapt(model, share, self.train, training, task=name, method=method)

    def in_share(self, share: Share) -> nn.Module:
        """The task as the Share model holds it: its update and its own head on the base model."""
        model: nn.Module = load_task(self.model(), share, self.view.name)
        return model

    def export_difference(self, share: Share, folder: Path) -> float:
        """Export the task as plain LoRA to ``folder`` and load it with PEFT.

        Returns:
            The largest difference of a logit, on the test images, to the task in the Share model.
        """
        share.export(self.view.name, folder)
        exported = require("peft", "train").PeftModel.from_pretrained(self.model(), folder)
        difference = self.test.logits(exported) - self.test.logits(self.in_share(share))
        return float(difference.abs().max())

    def _fit(self, model: nn.Module, training: TrainingSettings) -> None:
        fit(model, self.train, replace(training, seed=self.seed))
