"""Tiny stand-ins for Mistral-7B, its Lots-of-LoRAs adapters and their data sets: the same layout.

    python -m experiments standins generation FOLDER

A Llama with random weights (Mistral's q, k and v have the same names, and k and v are smaller here,
too), adapters of rank 16 on q, k and v made by PEFT, and data sets with the columns of the real
ones. Scores on them mean nothing. ``real --folder FOLDER`` takes them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.harness import standins
from sharespace.extras import require

TASKS = (20, 190, 280, 1564)
ROWS = {"train": 4, "valid": 2, "test": 3}
_WORDS = ("the", "cat", "dog", "sees", "likes", "a", "house", "river", "yes", "no", "red", "blue")


def make(folder: Path, tasks: Sequence[int] = TASKS) -> None:
    """``base``, ``adapters/<repository>`` and ``data/<repository>``."""
    transformers = require("transformers", "train")
    transformers.utils.logging.disable_progress_bar()
    _tokenizer(folder / "base")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _model().save_pretrained(folder / "base")
        for task in tasks:
            name = f"Mistral-7B-Instruct-v0.2-4b-r16-task{task}"
            _adapter(folder / "base", folder / "adapters" / name)
    for task in tasks:
        _data(folder / "data" / f"task{task}_stand_in_classification", random.Random(task))


def _tokenizer(folder: Path) -> None:
    tokenizers, transformers = require("tokenizers", "train"), require("transformers", "train")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(_WORDS, vocab_size=290, special_tokens=["</s>"], show_progress=False)
    fast = transformers.PreTrainedTokenizerFast
    fast(tokenizer_object=made._tokenizer, eos_token="</s>").save_pretrained(folder)


def _model() -> Any:
    transformers = require("transformers", "train")
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def _adapter(base: Path, folder: Path) -> None:
    """As PEFT writes it, with a B that is not zero."""
    peft, transformers = require("peft", "train"), require("transformers", "train")
    config = peft.LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        target_modules=["q_proj", "k_proj", "v_proj"],
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(model, config).save_pretrained(folder)


def _data(folder: Path, draw: random.Random) -> None:
    """JSON lines; the Hub's are Parquet, which ``datasets`` reads alike."""
    folder.mkdir(parents=True)
    for split, count in ROWS.items():
        rows = [
            {
                "input": "Definition: say something. Input: " + " ".join(draw.choices(_WORDS, k=6)),
                "output": draw.sample(_WORDS, draw.randint(1, 2)),
                "id": f"{folder.name}-{split}-{number}",
            }
            for number in range(count)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    standins.main(arguments, __doc__, make)
