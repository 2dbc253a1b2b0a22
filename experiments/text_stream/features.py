"""What the frozen lower layers of the encoder make of each example, computed once and kept.

Only the upper layers are adapted, so the lower ones give the same for every method and step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from experiments.harness.cached import Tensors, cached, digest
from experiments.text_stream.sets import TextSet

_BATCH = 64


@dataclass(frozen=True, eq=False)
class TextFeatures(Dataset[dict[str, Tensor]]):
    """Examples as hidden states."""

    hidden: Tensor
    """bfloat16 [tokens of all examples, width], before the first adapted layer."""
    offsets: Tensor
    """int64 [examples + 1]: where each example's tokens begin."""
    pooled: Tensor
    """float32 [examples, width]: mean of the base model's last hidden states."""
    labels: Tensor
    """int64 [examples]."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        lengths: list[int] = self.offsets.diff().tolist()
        return lengths

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        begin, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return {"hidden": self.hidden[begin:end], "labels": self.labels[index]}

    def subset(self, count: int) -> TextFeatures:
        """The first examples."""
        end, offsets = int(self.offsets[count]), self.offsets[: count + 1]
        return TextFeatures(self.hidden[:end], offsets, self.pooled[:count], self.labels[:count])

    def rows(self, numbers: Sequence[int]) -> TextFeatures:
        """The examples of these numbers, in this order."""
        examples = torch.tensor(numbers, dtype=torch.long)
        lengths = self.offsets.diff()[examples]
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        begins = [self.offsets[n] for n in numbers]
        parts = [self.hidden[b : b + n] for b, n in zip(begins, lengths, strict=True)]
        hidden = torch.cat(parts) if parts else self.hidden[:0]
        return TextFeatures(hidden, offsets, self.pooled[examples], self.labels[examples])

    def followed_by(self, other: TextFeatures) -> TextFeatures:
        """These examples, and then those."""
        offsets = torch.cat([self.offsets, self.offsets[-1] + other.offsets[1:]])
        return TextFeatures(
            torch.cat([self.hidden, other.hidden]),
            offsets,
            torch.cat([self.pooled, other.pooled]),
            torch.cat([self.labels, other.labels]),
        )

    def after(self, count: int) -> TextFeatures:
        """All but the first examples."""
        begin, offsets = int(self.offsets[count]), self.offsets[count:]
        return TextFeatures(
            self.hidden[begin:], offsets - begin, self.pooled[count:], self.labels[count:]
        )


def collate(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """hidden (batch, longest, width), attention_mask (batch, longest), labels (batch,)."""
    states = [e["hidden"] for e in examples]
    hidden = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
    lengths = torch.tensor([len(s) for s in states])
    mask = torch.arange(hidden.shape[1])[None] < lengths[:, None]
    labels = torch.stack([e["labels"] for e in examples])
    return {"hidden": hidden, "attention_mask": mask, "labels": labels}


@dataclass(frozen=True, eq=False)
class Lower:
    """The frozen lower layers of an encoder."""

    encoder: Any
    """The whole base model, a ``BertModel``."""
    tokenizer: Any
    layers: int
    """How many of them are not adapted."""
    length: int
    """Tokens of the longest example; the rest is cut off."""
    cache: Path

    @cached_property
    def digest(self) -> str:
        """Of all that decides what it makes of an example."""
        return digest(self.encoder, self.layers, self.length)

    def features(self, examples: TextSet) -> TextFeatures:
        """Hidden states of texts or pairs of texts, from the cache where they are there."""
        name = digest(examples, self.digest)
        return TextFeatures(**cached(self.cache, name, lambda: self._compute(examples)))

    @torch.no_grad()
    def _compute(self, examples: TextSet) -> Tensors:
        pairs = None if examples.pairs is None else list(examples.pairs)
        tokens = self.tokenizer(
            list(examples.texts), pairs, truncation="longest_first", max_length=self.length
        )
        lengths = torch.tensor([len(ids) for ids in tokens["input_ids"]])
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        width = self.encoder.config.hidden_size
        hidden = torch.empty(int(offsets[-1]), width, dtype=torch.bfloat16)
        pooled = torch.empty(len(lengths), width)
        for rows in torch.split(lengths.argsort(stable=True), _BATCH):
            some = [{key: tokens[key][i] for key in tokens} for i in rows.tolist()]
            batch = self.tokenizer.pad(some, return_tensors="pt")
            with torch.autocast("cpu", torch.bfloat16):
                result = self.encoder.eval()(**batch, output_hidden_states=True)
            mask = batch["attention_mask"].bool()
            weights = mask[..., None].float()
            pooled[rows] = (result.last_hidden_state.float() * weights).sum(1) / weights.sum(1)
            states = result.hidden_states[self.layers]
            for row, mine, used in zip(rows.tolist(), states, mask, strict=True):
                hidden[offsets[row] : offsets[row + 1]] = mine[used].bfloat16()
        labels = torch.tensor(examples.labels)
        return {"hidden": hidden, "offsets": offsets, "pooled": pooled, "labels": labels}
