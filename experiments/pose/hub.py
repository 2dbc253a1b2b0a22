"""Any image model of the Hub with a head of angle bins, for photographs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from experiments.harness.heads import Head
from experiments.pose.model import AngleBins, Bins, train_head
from experiments.pose.task import Views, collate
from sharespace.extras import require

PHOTOGRAPHS = AngleBins(Bins(24), Bins(24), Bins(24))
"""Whole circles: photographs have any theta."""
_BATCH = 64


class HubPose(nn.Module):
    """An image model and a head on its features."""

    def __init__(self, backbone: Any, head: Head, bins: AngleBins) -> None:
        super().__init__()
        self.backbone, self.bins = backbone, bins
        self.classifier = head

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits [views, bins]; with angles [views, 3] as labels, the loss."""
        logits = self.classifier(pooled(self.backbone, pixel_values))
        if labels is None:
            return {"logits": logits}
        return {"loss": self.bins.loss(logits, labels), "logits": logits}


def pooled(backbone: Any, pixel_values: Tensor) -> Tensor:
    """Mean over the places of a feature map, or over the tokens of a ViT; [views, width]."""
    states: Tensor = backbone(pixel_values=pixel_values).last_hidden_state
    return states.flatten(2).mean(2) if states.dim() == 4 else states.mean(1)


@dataclass(frozen=True, eq=False)
class HubBase:
    """A pretrained image model and how it wants its images."""

    backbone: Any
    size: int
    mean: Sequence[float]
    deviation: Sequence[float]
    name: str


def load_hub(name: str) -> HubBase:
    """By path or Hub id, for example ``google/vit-base-patch16-224-in21k``.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    transformers = require("transformers", "train")
    backbone = transformers.AutoModel.from_pretrained(name)
    wanted, _ = transformers.image_processing_utils.ImageProcessingMixin.get_image_processor_dict(
        name
    )
    size = wanted["size"]
    side = size.get("height") or size["shortest_edge"]
    mean, deviation = wanted["image_mean"], wanted["image_std"]
    return HubBase(backbone.eval().requires_grad_(False), int(side), mean, deviation, name)


def hub_model(base: HubBase, train: Views, seed: int) -> Callable[[], HubPose]:
    """Makes the model of a task, its head trained on the frozen backbone.

    Args:
        base: see ``load_hub``.
        train: training views of the task.
        seed: of the head.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seen, angles = [], []
    on_device = base.backbone.to(device)
    with torch.no_grad():
        for batch in DataLoader(train, batch_size=_BATCH, collate_fn=collate):
            seen.append(pooled(on_device, batch["pixel_values"].to(device)).float().cpu())
            angles.append(batch["labels"])
    base.backbone.cpu()
    head = train_head(torch.cat(seen), torch.cat(angles), PHOTOGRAPHS, seed)
    return lambda: HubPose(copy.deepcopy(base.backbone), copy.deepcopy(head), PHOTOGRAPHS).eval()
