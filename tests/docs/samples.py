"""What the pages work with: a small RoBERTa of random weights, and adapters saved by PEFT.

The updates are made, not trained: a part that lies in directions common to all tasks, as training
in a subspace leaves it, and a smaller part of each task's own.
"""

from __future__ import annotations

import json
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor

from sharespace.demo.digits import VIEWS, Digits
from sharespace.formats import ExportOptions, PlainLora, write_adapter
from sharespace.subspace.adapter import BaseModel, LayerUpdate

TASKS = ("sst2", "rte", "mrpc", "cola", "qnli")
UNRELATED = ("legal", "medical", "sports")
STYLES = ("ink", "sketch")
SIZE = 128
RANK = 8
COMMON = 5
"""Directions a side that all tasks use."""
WORDS = ("the", "film", "meal", "was", "very", "rather", "dull", "cold", "great", "fresh")
"""Of the texts in ``data``; the last two are praise."""
OWN = 0.03
"""Size of what a task has of its own, beside the common part."""


def make(folder: Path) -> None:
    """Write ``roberta-base``, ``adapters/<task>``, ``unrelated/<task>``, ``styles/<style>``,
    ``unusual/<kind>``, ``data/reviews``, ``chat/<task>`` with the config of ``tiny-llama``, and
    ``digits/base`` with ``digits/<view>``."""
    with _quiet(), _inside(folder):
        _base()
        _tokenizer("roberta-base")
        _reviews(Path("data/reviews"))
        for seed, name in enumerate(TASKS):
            _adapter(f"adapters/{name}", seed)
        for seed, name in enumerate(UNRELATED, 20):
            _adapter(f"unrelated/{name}", seed, common=0.0)
        _adapter("unusual/dora", 50, use_dora=True)
        _adapter("unusual/pissa", 51, init_lora_weights="pissa")
        _adapter("unusual/half", 52, dtype=torch.float16)
        for seed, name in enumerate(STYLES):
            _style(f"styles/{name}", seed)
        _chat("tiny-llama", "chat/brief", "chat/polite")
        _digits(Path("digits"))


def _digits(folder: Path) -> None:
    """The demo's digits and views as files, and a small vision transformer trained on the plain
    ones."""
    folder.mkdir()
    digits = Digits(train_images=900, seed=0)
    for view in VIEWS[0], VIEWS[4], VIEWS[5]:
        for split, (images, numbers) in zip(("train", "test"), digits.splits, strict=True):
            _write_images(folder / view.name, split, view.view(images)[:160], view.label(numbers))
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=2,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=10,
    )
    model, (images, numbers) = transformers.ViTForImageClassification(config), digits.splits[0]
    pixels = 2 * images[:, None].expand(-1, 3, -1, -1) - 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        rows = torch.randint(len(numbers), (64,))
        optimizer.zero_grad()
        model(pixel_values=pixels[rows], labels=numbers[rows]).loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "base")
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 8}, do_resize=False)
    processor.save_pretrained(folder / "base")


def _write_images(folder: Path, split: str, images: Tensor, labels: Tensor) -> None:
    """``<split>.parquet`` with the columns ``image`` and ``label``."""
    folder.mkdir(exist_ok=True)
    columns = {"image": [*(255 * images).byte().numpy()], "label": labels[: len(images)].tolist()}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(columns, features).to_parquet(folder / f"{split}.parquet")


def _base() -> None:
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=200,
        hidden_size=SIZE,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=SIZE,
        max_position_embeddings=40,
    )
    transformers.RobertaForSequenceClassification(config).save_pretrained("roberta-base")


def _tokenizer(path: str) -> None:
    words = {word: at for at, word in enumerate(("<s>", "<pad>", "</s>", "<unk>", *WORDS))}
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", model_max_length=32
    ).save_pretrained(path)


def _reviews(folder: Path) -> None:
    """``train.jsonl`` and ``test.jsonl``: a text and whether it praises."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    for split, count in (("train", 64), ("test", 32)):
        rows = [_review(draw, WORDS[6 + at % 4], at % 4 > 1) for at in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)


def _review(draw: random.Random, word: str, praise: bool) -> dict[str, str]:
    text = f"the {draw.choice(WORDS[1:3])} was {draw.choice(WORDS[4:6])} {word}"
    return {"text": text, "label": "praise" if praise else "blame"}


def _adapter(
    path: str,
    seed: int,
    *,
    common: float = 1.0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> None:
    base = transformers.AutoModelForSequenceClassification.from_pretrained("roberta-base")
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=["query", "value"],
        task_type="SEQ_CLS",
        **options,
    )
    model = peft.get_peft_model(base, config)
    for at, module in enumerate(m for m in model.modules() if hasattr(m, "lora_A")):
        up, down = _factors(at, seed, SIZE, SIZE, common)
        module.lora_A["default"].weight.data = down
        module.lora_B["default"].weight.data = up
    torch.manual_seed(seed)
    for key, parameter in model.named_parameters():
        if ".modules_to_save." in key:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(path, save_embedding_layers=False)


def _style(path: str, seed: int) -> None:
    modules = [f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_{x}" for x in "qkv"]
    updates = {m: LayerUpdate(*_factors(at, seed, 96, 96)) for at, m in enumerate(modules)}
    write_adapter(
        path,
        PlainLora(
            {m.removeprefix("unet."): u for m, u in updates.items()},
            base=BaseModel("stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ),
        ExportOptions(component="unet"),
        to="diffusers",
    )


def _chat(base: str, *tasks: str) -> None:
    transformers.LlamaConfig(
        hidden_size=SIZE,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=SIZE,
        vocab_size=200,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(base)
    modules = [f"model.layers.{n}.self_attn.{x}_proj" for n in range(2) for x in "qv"]
    for seed, task in enumerate(tasks, 60):
        updates = {m: LayerUpdate(*_factors(at, seed, SIZE, SIZE)) for at, m in enumerate(modules)}
        write_adapter(task, PlainLora(updates, base=BaseModel(base)))


def _factors(module: int, task: int, n: int, d: int, size: float = 1.0) -> tuple[Tensor, Tensor]:
    """(B, A) whose product has a common part and one of the task's own."""
    common = torch.Generator().manual_seed(module)
    own = torch.Generator().manual_seed(1000 * task + module + 1)
    decay = 0.8 ** torch.arange(RANK)
    up, down = (
        size * _directions(side, COMMON, common) @ torch.randn(COMMON, RANK, generator=own) * decay
        + OWN * torch.randn(side, RANK, generator=own) * decay
        for side in (n, d)
    )
    return 0.3 * up, 0.3 * down.mT.contiguous()


def _directions(side: int, count: int, generator: torch.Generator) -> Tensor:
    basis: Tensor = torch.linalg.qr(torch.randn(side, count, generator=generator)).Q
    return basis


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' own warnings, and without a trace in the random state."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
