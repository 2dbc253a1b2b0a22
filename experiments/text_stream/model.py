"""The upper layers of the encoder with a classification head: the base model of the experiment."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from experiments.harness.heads import Head
from experiments.text_stream.features import TextFeatures, collate

_EVALUATED = 64
"""Examples in a batch."""


class UpperEncoder(nn.Module):
    """Layers ``lower`` to the last of a ``BertModel``, mean pooling, and a head.

    Frozen weights are bfloat16; adapters and head are float32.
    """

    def __init__(self, encoder: Any, lower: int, classifier: Head) -> None:
        super().__init__()
        self.lower = lower
        self.layer = nn.ModuleDict(
            {str(i): encoder.encoder.layer[i] for i in range(lower, len(encoder.encoder.layer))}
        )
        self.classifier = classifier

    def forward(
        self, hidden: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        weight = next(self.layer.parameters())
        states = hidden.to(weight.dtype)
        blocked = torch.zeros_like(attention_mask, dtype=states.dtype)
        blocked = blocked.masked_fill(~attention_mask, torch.finfo(states.dtype).min)
        for layer in self.layer.values():
            output = layer(states, attention_mask=blocked[:, None, None, :])
            states = output[0] if isinstance(output, tuple) else output
        used = attention_mask[..., None].float()
        logits = self.classifier((states.float() * used).sum(1) / used.sum(1))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def upper_encoder(encoder: Any, lower: int, head: Head) -> UpperEncoder:
    """A model of its own: nothing that is put into it touches another task's."""
    model = UpperEncoder(copy.deepcopy(encoder), lower, copy.deepcopy(head))
    model.layer.to(torch.bfloat16)
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, test: TextFeatures) -> float:
    """Percent of the examples."""
    order = torch.tensor(test.lengths).argsort(stable=True)
    right = 0
    for rows in torch.split(order, _EVALUATED):
        batch = collate([test[i] for i in rows.tolist()])
        labels = batch.pop("labels")
        with torch.autocast("cpu", torch.bfloat16):
            predicted = model(**batch)["logits"].argmax(dim=1)
        right += int((predicted == labels).sum())
    return 100 * right / len(test)
