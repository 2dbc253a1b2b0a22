"""What the frozen lower layers of the encoder make of each example, computed once and kept.

Only the upper layers are adapted, so the lower ones give the same for every method and step.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from experiments.text_stream.sets import TextSet
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

_BATCH = 64


@dataclass(frozen=True, eq=False)
class Features(Dataset[dict[str, Tensor]]):
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
        found: list[int] = self.offsets.diff().tolist()
        return found

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        begin, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return {"hidden": self.hidden[begin:end], "labels": self.labels[index]}

    def subset(self, count: int) -> Features:
        """The first examples."""
        end = int(self.offsets[count])
        return Features(
            self.hidden[:end], self.offsets[: count + 1], self.pooled[:count], self.labels[:count]
        )

    def after(self, count: int) -> Features:
        """All but the first examples."""
        begin = self.offsets[count]
        return Features(
            self.hidden[int(begin) :],
            self.offsets[count:] - begin,
            self.pooled[count:],
            self.labels[count:],
        )


def collate(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """hidden (batch, longest, width), attention_mask (batch, longest), labels (batch,)."""
    states = [e["hidden"] for e in examples]
    hidden = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
    lengths = torch.tensor([len(s) for s in states])
    mask = torch.arange(hidden.shape[1])[None] < lengths[:, None]
    labels = torch.stack([e["labels"] for e in examples])
    return {"hidden": hidden, "attention_mask": mask, "labels": labels}


def features(
    examples: TextSet, encoder: Any, tokenizer: Any, *, lower: int, length: int, cache: Path
) -> Features:
    """Hidden states after ``lower`` layers, from the cache where they are there.

    Args:
        examples: texts or pairs of texts.
        encoder: the base model, a ``BertModel``.
        tokenizer: its tokenizer.
        lower: layers that are not adapted.
        length: tokens of the longest example; the rest is cut off.
        cache: folder; a file is named by the content that it was computed from.
    """
    file = cache / f"{_name(examples, encoder, lower, length)}.safetensors"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        found = _compute(examples, encoder, tokenizer, lower, length)
        unfinished = file.with_suffix(".part")
        save_file(found, unfinished)
        unfinished.replace(file)
    loaded = load_file(file)
    return Features(**loaded)


def _name(examples: TextSet, encoder: Any, lower: int, length: int) -> str:
    digest = hashlib.sha256(repr((examples, lower, length)).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]


@torch.no_grad()
def _compute(
    examples: TextSet, encoder: Any, tokenizer: Any, lower: int, length: int
) -> dict[str, Tensor]:
    pairs = None if examples.pairs is None else list(examples.pairs)
    tokens = tokenizer(list(examples.texts), pairs, truncation="longest_first", max_length=length)
    lengths = torch.tensor([len(ids) for ids in tokens["input_ids"]])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    width = encoder.config.hidden_size
    hidden = torch.empty(int(offsets[-1]), width, dtype=torch.bfloat16)
    pooled = torch.empty(len(lengths), width)
    for rows in torch.split(lengths.argsort(stable=True), _BATCH):
        batch = tokenizer.pad(
            [{key: tokens[key][i] for key in tokens} for i in rows.tolist()], return_tensors="pt"
        )
        with torch.autocast("cpu", torch.bfloat16):
            result = encoder.eval()(**batch, output_hidden_states=True)
        mask = batch["attention_mask"].bool()
        weights = mask[..., None].float()
        pooled[rows] = (result.last_hidden_state.float() * weights).sum(1) / weights.sum(1)
        for row, states, used in zip(rows.tolist(), result.hidden_states[lower], mask, strict=True):
            hidden[offsets[row] : offsets[row + 1]] = states[used].bfloat16()
    labels = torch.tensor(examples.labels)
    return {"hidden": hidden, "offsets": offsets, "pooled": pooled, "labels": labels}
