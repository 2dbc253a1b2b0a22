"""The base model as the engine runs it: which kinds of requests it takes, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sharespace.errors import MismatchError
from sharespace.extras import require
from sharespace.linalg.precision import usable_device
from sharespace.serve.generate import pad_left
from sharespace.serve.mixed import MixedTasks
from sharespace.serve.requests import Classify, Embed, Generate, Request, Scores, Vector
from sharespace.share import Share


@dataclass(frozen=True, eq=False)
class Served:
    """A base model with tasks."""

    mixed: MixedTasks
    tokenizer: Any
    name: str
    """What the base model itself is called in requests."""

    @property
    def model(self) -> Any:
        """Of transformers."""
        return self.mixed.model

    @property
    def kinds(self) -> tuple[type[Request], ...]:
        """What can be asked: text, if it has a language head; labels, if it classifies."""
        found: list[type[Request]] = []
        if self.model.can_generate():
            found.append(Generate)
        if "ForSequenceClassification" in type(self.model).__name__:
            found.append(Classify)
        return (*found, Embed)

    @property
    def longest(self) -> int:
        """Tokens of a prompt and its answer together, at most."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return 2048 if limit is None else int(limit)

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        config = getattr(self.model, "generation_config", None)
        ids = [getattr(config, "eos_token_id", None), self.tokenizer.eos_token_id]
        flat = [i for x in ids if x is not None for i in (x if isinstance(x, list) else [x])]
        return frozenset(int(i) for i in flat)

    @torch.no_grad()
    def classify(self, rows: Sequence[Classify]) -> list[Scores]:
        """Logits of each row's own head; labels that a task's head has not are left out."""
        with self.mixed.tasks([row.task for row in rows]):
            logits = self.model(**self._padded(rows)).logits.float().cpu()
        return [Scores(tuple(x for x in row.tolist() if x != -torch.inf)) for row in logits]

    @torch.no_grad()
    def embed(self, rows: Sequence[Embed]) -> list[Vector]:
        """Mean last hidden states."""
        batch = self._padded(rows)
        with self.mixed.tasks([row.task for row in rows]):
            found = self.model(**batch, output_hidden_states=True)
        states = found.hidden_states[-1].float()
        kept = batch["attention_mask"][..., None].float()
        means = (states * kept).sum(1) / kept.sum(1)
        unit = torch.nn.functional.normalize(means, dim=1).cpu()
        return [Vector(tuple(row.tolist())) for row in unit]

    def _padded(self, rows: Sequence[Classify] | Sequence[Embed]) -> dict[str, torch.Tensor]:
        """Padded on the side that the tokenizer says: encoders have absolute positions."""
        pad = 0 if self.tokenizer.pad_token_id is None else int(self.tokenizer.pad_token_id)
        texts = [row.tokens for row in rows]
        if self.tokenizer.padding_side == "left":
            return pad_left(texts, pad, self.model.device)
        turned = pad_left([text[::-1] for text in texts], pad, self.model.device)
        return {name: tensor.flip(1) for name, tensor in turned.items()}


def load_base(
    base: str,
    share: Share,
    *,
    name: str | None = None,
    dtype: str = "float32",
    slots: int = 256,
    device: str | None = None,
) -> Served:
    """A base model by path or Hub id, of the class that its own config names.

    Args:
        base: path or Hub id.
        share: its tasks.
        name: what the base model is called in requests; None: as ``base`` says.
        dtype: of the model, the bases and the coefficients: "float32", "bfloat16" or "float16".
        slots: tasks at hand at the same time.
        device: where the model runs; None: the first GPU, or the CPU where there is none.

    Raises:
        OptionError: there is no such device.
        MissingExtraError: transformers is not installed.
        MismatchError: it is of no class of transformers, or not the Share model's base.
    """
    transformers = require("transformers", "serve")
    place = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config = transformers.AutoConfig.from_pretrained(base)
    names = getattr(config, "architectures", None) or []
    found = next((getattr(transformers, n) for n in names if hasattr(transformers, n)), None)
    if found is None:
        raise MismatchError(
            f"base model {base!r}",
            f"its config names {names or 'no architecture'}, which transformers does not have",
            "Give a model that was saved by transformers",
        )
    kind = getattr(torch, dtype)
    model = found.from_pretrained(base, dtype=kind).eval().requires_grad_(False).to(place)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    return Served(MixedTasks(model, share, slots=slots, dtype=kind), tokenizer, name or base)
