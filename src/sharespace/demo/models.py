"""The demo's small vision transformer, pretrained here, and its scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sharespace.demo.settings import Settings
from sharespace.demo.tasks import PLAIN, SIDE, Digits, Examples
from sharespace.extras import require
from sharespace.learn import fit

HEAD = "classifier"


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
