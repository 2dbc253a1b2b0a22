"""The base model: a small Llama and its tokenizer, trained on the shared texts and kept by content.

Pretraining mixes plain text with instruction-like examples of tasks that are not in the stream.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from experiments.generation.settings import Pretraining
from experiments.generation.tasks import Example, plain_texts, taught
from sharespace.extras import require

IGNORED = -100
END = "<end>"
_POOL = 32
"""Batches that are drawn at once and sorted by length."""


@dataclass(frozen=True, eq=False)
class Base:
    """The pretrained model, frozen, in bfloat16, and its tokenizer."""

    model: Any
    tokenizer: Any
    name: str
    """Made of the content that it was trained on."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """One example, tokenised."""

    ids: tuple[int, ...]
    prompt: int
    """Tokens before the answer."""


def tokenise(tokenizer: Any, examples: Sequence[Example], length: int) -> list[Tokens]:
    """Prompts, answers and the end token; prompts lose their beginning where they are too long."""
    prompts = tokenizer([e.prompt for e in examples])["input_ids"]
    answers = tokenizer([f" {e.answer}" for e in examples])["input_ids"]
    rows = []
    for asked, said in zip(prompts, answers, strict=True):
        said = [*said, tokenizer.eos_token_id]
        asked = asked[-(length - len(said)) :]
        rows.append(Tokens((*asked, *said), len(asked)))
    return rows


def padded(rows: Sequence[Tokens], pad: int = 0) -> tuple[Tensor, Tensor]:
    """ids and labels, int64 [rows, longest], filled up on the right; labels of answers only.

    A causal model needs no mask for what comes after all that counts.
    """
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    labels = torch.full((len(rows), longest), IGNORED)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        labels[i, row.prompt : len(row.ids)] = ids[i, row.prompt : len(row.ids)]
    return ids, labels


def load_base(data: Path, numbers: Pretraining, cache: Path) -> Base:
    """The base model, from the cache where it is there; else it is trained (minutes).

    Args:
        data: folder with one folder a set.
        numbers: of model and training; with the texts they name the folder in the cache.
        cache: folder.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    transformers = require("transformers", "train")
    texts, examples = plain_texts(data), taught(data, numbers.instructions)
    digest = hashlib.sha256(repr((numbers, texts, examples)).encode()).hexdigest()[:16]
    folder = cache / f"base-{digest}"
    if not (folder / "config.json").is_file():
        _make(folder, texts, examples, numbers)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.bfloat16
    )
    return Base(model.eval().requires_grad_(False), tokenizer, f"small-llama-{digest}")


def _make(
    folder: Path, texts: Sequence[str], examples: Sequence[Example], numbers: Pretraining
) -> None:
    aside = folder.with_suffix(".part")
    shutil.rmtree(aside, ignore_errors=True)
    corpus = [*texts, *(f"{e.prompt} {e.answer}" for e in examples[::4])]
    tokenizer = _tokenizer(corpus, numbers.vocabulary)
    model = _pretrain(tokenizer, texts, examples, numbers)
    tokenizer.save_pretrained(aside)
    model.save_pretrained(aside)
    aside.replace(folder)


def _tokenizer(corpus: Sequence[str], size: int) -> Any:
    """Byte-level BPE."""
    tokenizers = require("tokenizers", "train")
    made = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
    made.train_from_iterator(corpus, vocab_size=size, special_tokens=[END], show_progress=False)
    fast = require("transformers", "train").PreTrainedTokenizerFast
    return fast(tokenizer_object=made._tokenizer, eos_token=END, pad_token=END)


def _pretrain(
    tokenizer: Any, texts: Sequence[str], examples: Sequence[Example], numbers: Pretraining
) -> Any:
    model = _fresh(tokenizer, numbers)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=numbers.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, numbers.learning_rate, numbers.steps, pct_start=0.1, div_factor=100
    )
    rows = _batches(tokenizer, texts, examples, numbers)
    began, said = time.perf_counter(), 0.0
    for step in range(numbers.steps):
        asked, plain = next(rows)
        with torch.autocast("cpu", torch.bfloat16):
            losses = [_loss(model, *padded(asked)), _loss(model, *padded(plain))]
        optimizer.zero_grad()
        sum(losses).backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        said = 0.98 * said + 0.02 * float(losses[0].detach()) if step else float(losses[0].detach())
        if step % 100 == 99:
            text, seconds = float(losses[1].detach()), time.perf_counter() - began
            print(f"pretraining: step {step + 1}, answers {said:.3f}, text {text:.2f}, "
                  f"{seconds:.0f} s", flush=True)  # fmt: skip
    return model


def _fresh(tokenizer: Any, numbers: Pretraining) -> Any:
    transformers = require("transformers", "train")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=numbers.hidden,
        intermediate_size=numbers.intermediate,
        num_hidden_layers=numbers.layers,
        num_attention_heads=numbers.heads,
        num_key_value_heads=numbers.heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config)


def answer_logits(model: Any, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels of the positions that count only: [positions, vocabulary], [positions]."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    counted = labels[:, 1:] != IGNORED
    return model.lm_head(hidden[:, :-1][counted]), labels[:, 1:][counted]


def _loss(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    logits, wanted = answer_logits(model, ids, labels)
    return functional.cross_entropy(logits.float(), wanted)


def _batches(
    tokenizer: Any, texts: Sequence[str], examples: Sequence[Example], numbers: Pretraining
) -> Iterator[tuple[list[Tokens], list[Tokens]]]:
    """Endless batches of examples and of plain text; those of one batch are about as long."""
    asked = tokenise(tokenizer, examples, numbers.length)
    few = max(numbers.batch_size // 4, 1)
    # More than so many are never drawn.
    used = list(texts)[: _POOL * few * numbers.steps]
    cut = [ids[: numbers.length] for ids in tokenizer(used)["input_ids"]]
    plain = [Tokens((*ids, tokenizer.eos_token_id), 0) for ids in cut]
    both = [_by_length(asked, numbers.batch_size - few, 2), _by_length(plain, few, 3)]
    yield from zip(*both, strict=True)


def _by_length(rows: Sequence[Tokens], size: int, seed: int) -> Iterator[list[Tokens]]:
    draw = random.Random(seed)
    while True:
        some = sorted(draw.sample(rows, min(len(rows), _POOL * size)), key=lambda row: len(row.ids))
        batches = [some[i : i + size] for i in range(0, len(some), size)]
        draw.shuffle(batches)
        yield from batches
