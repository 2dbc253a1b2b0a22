"""A tiny classifier and adapters for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate


class Net(nn.Module):
    """Two linear modules and a head; the loss as transformers' models return it."""

    def __init__(self, labels: int = 3) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 14), nn.Linear(14, 12)
        self.classifier = nn.Linear(12, labels)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.classifier(torch.tanh(self.second(torch.tanh(self.first(x)))))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def net() -> Net:
    torch.manual_seed(0)
    return Net()


class Points(Dataset[dict[str, Tensor]]):
    """Points whose label is where their largest of three coordinates is."""

    def __init__(self, count: int = 96) -> None:
        self.x = torch.randn(count, 10, generator=torch.Generator().manual_seed(1))
        self.labels = self.x[:, :3].argmax(dim=1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.labels[index]}


def adapter(name: str, seed: int, rank: int = 2) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"first": (14, 10), "second": (12, 14)}
    updates = {
        m: LayerUpdate(
            torch.randn(n, rank, generator=generator), torch.randn(rank, d, generator=generator)
        )
        for m, (n, d) in shapes.items()
    }
    return Adapter.from_updates(name, updates, base=BaseModel("tiny/net"))
