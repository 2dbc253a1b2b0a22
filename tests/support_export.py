"""Tasks of tiny language models, to be exported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from sharespace.formats import PlainLora
from sharespace.subspace.adapter import BaseModel, LayerUpdate

LAYERS = 2
EVERYTHING = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
IDS = torch.tensor([[3, 17, 8, 25, 11]])


def llama(**config: Any) -> LlamaForCausalLM:
    """The same tiny model every time; grouped queries, so q and k differ in size."""
    sizes = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "pad_token_id": 0, "eos_token_id": 39, "tie_word_embeddings": False,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**(sizes | config))).eval()


def lora_of(
    model: nn.Module, words: Iterable[str] = EVERYTHING, *, ranks: Iterable[int] = (2, 3, 4)
) -> PlainLora:
    """Random updates of all modules whose path ends with one of these words."""
    chosen = tuple(words)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    names = [n for n in names if n.rpartition(".")[2] in chosen]
    ranks = tuple(ranks)
    draw = torch.Generator().manual_seed(1)
    updates = {}
    for i, name in enumerate(names):
        n, d = weight_of(model, name).shape
        r = ranks[i % len(ranks)]
        up, down = torch.randn(n, r, generator=draw), torch.randn(r, d, generator=draw)
        updates[name] = LayerUpdate(0.2 * up, down, 1.0 + i % 3)
    return PlainLora(updates, {}, {}, {}, BaseModel("tiny/base"))


def weight_of(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(f"{name}.weight")


def dense(update: LayerUpdate) -> Tensor:
    return update.scaling * update.up @ update.down


def changed(model: nn.Module, lora: PlainLora, new: Callable[[str], Tensor] | None = None) -> Any:
    """The model with every update added to its weight."""
    with torch.no_grad():
        for module, update in lora.updates.items():
            delta = dense(update) if new is None else new(module)
            weight_of(model, module).add_(delta)
    return model


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids).logits
    return found


def saved_config(model: Any, folder: Path) -> Path:
    """The model's config.json alone."""
    model.config.save_pretrained(folder)
    return folder
