"""Tiny models, data and adapters for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sharespace import Share
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate
from sharespace.subspace.coefficients import Coefficients, Factors, PerTask

SHAPES = {"first": (14, 10), "second": (12, 14)}
"""Adapted modules of ``Net``: n x d."""


FACTORS: Any = {"form": "factors", "start": "zero"}
"""Of ``TaskMethod``: factors are trained, and nothing is chosen."""


class Net(nn.Module):
    """Two linear modules and a head; the loss as transformers' models return it."""

    def __init__(self, labels: int = 3, hidden: int = 14) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, hidden), nn.Linear(hidden, 12)
        self.classifier = nn.Linear(12, labels)

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(x))))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.classifier(self.features(x))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def net(seed: int = 0, hidden: int = 14) -> Net:
    torch.manual_seed(seed)
    return Net(hidden=hidden)


class Points(Dataset[dict[str, Tensor]]):
    """Points whose label is where their largest of three coordinates is."""

    def __init__(self, count: int = 96) -> None:
        self.x = torch.randn(count, 10, generator=torch.Generator().manual_seed(1))
        self.labels = self.x[:, :3].argmax(dim=1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.labels[index]}


def adapter(name: str, seed: int, rank: int = 2, scale: float = 1.0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    updates = {
        m: LayerUpdate(
            scale * torch.randn(n, rank, generator=generator),
            torch.randn(rank, d, generator=generator),
        )
        for m, (n, d) in SHAPES.items()
    }
    return Adapter.from_updates(name, updates, base=BaseModel("tiny/net"))


def shared(k: int = 4) -> Share:
    """Two tasks, a and b, in k directions a side."""
    return Share.from_adapters([adapter("a", 1, scale=0.1), adapter("b", 2, scale=0.1)], k=k)


def accuracy(model: nn.Module) -> float:
    points = Points()
    with torch.no_grad():
        found = model(x=points.x)["logits"].argmax(dim=1) == points.labels
    return float(found.float().mean())


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(x=Points().x)["logits"]
    return found


def same(first: Mapping[str, Coefficients], second: Mapping[str, Coefficients]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(
        torch.equal(x, y)
        for m in first
        for x, y in zip(first[m].tensors, second[m].tensors, strict=True)
    )


def only_padded(before: Coefficients, after: Coefficients) -> bool:
    """After a merge with room: the same numbers bit for bit, then rows of zeros."""
    assert isinstance(before, Factors | PerTask)
    assert isinstance(after, Factors | PerTask)
    pairs = [(before.left, after.left), (before.right, after.right)]
    return all(torch.equal(x, y[: len(x)]) and not y[len(x) :].any() for x, y in pairs)


def snapshot(model: nn.Module) -> dict[str, object]:
    """All that a refusal must leave as it is."""
    return {
        "modules": [(name, type(m)) for name, m in model.named_modules()],
        "trained": [(name, p.requires_grad) for name, p in model.named_parameters()],
        "values": {name: t.clone() for name, t in model.state_dict().items()},
    }


def unchanged(model: nn.Module, before: dict[str, object], *, flags: bool = True) -> bool:
    now, values = snapshot(model), before["values"]
    assert isinstance(values, dict)
    same_values = values.keys() == model.state_dict().keys() and all(
        torch.equal(t, values[name]) for name, t in model.state_dict().items()
    )
    same_flags = now["trained"] == before["trained"] or not flags
    return same_values and same_flags and now["modules"] == before["modules"]
