"""llama.cpp's names of a base model's modules, and the order that it keeps their rows in.

Names are those of the ``gguf`` package. What it does not say is here: which of its architectures a
model is, and whether the converter reorders rows of queries and keys. Source: ggml-org/llama.cpp
``convert_hf_to_gguf.py`` (``conversion/*.py``) and ``src/llama-adapter.cpp``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sharespace.errors import MismatchError, UnsupportedAdapterError
from sharespace.extras import require
from sharespace.formats.base_config import BaseConfig
from sharespace.formats.plain_only import ELSEWHERE

EXTRA = "gguf"
HEAD = "lm_head"


@dataclass(frozen=True)
class Architecture:
    """A base model as llama.cpp has it."""

    name: str
    """Member of ``gguf.MODEL_ARCH``."""
    rotary_pairs: bool = False
    """Rows of q and k are in pairs (x0, y0, x1, y1 ...); transformers has halves (x0 x1 ... y0 y1
    ...)."""
    tied: bool = False
    """Its output layer is its token embedding, where the configuration does not say."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("LLAMA", rotary_pairs=True),
    "mistral": Architecture("LLAMA", rotary_pairs=True),
    "granite": Architecture("GRANITE", rotary_pairs=True),
    "smollm3": Architecture("SMOLLM3", rotary_pairs=True, tied=True),
    "qwen2": Architecture("QWEN2"),
    "qwen3": Architecture("QWEN3"),
    "gemma": Architecture("GEMMA", tied=True),
    "gemma2": Architecture("GEMMA2", tied=True),
    "gemma3_text": Architecture("GEMMA3", tied=True),
    "phi3": Architecture("PHI3"),
    "gpt2": Architecture("GPT2", tied=True),
}
"""transformers' ``model_type`` -> what llama.cpp makes of it."""


class Names:
    """Names and rows of one base model.

    Args:
        config: of the base model.

    Raises:
        UnsupportedAdapterError: an architecture that is not known here.
        MissingExtraError: the ``gguf`` package is not installed.
    """

    def __init__(self, config: BaseConfig) -> None:
        if config.model_type not in ARCHITECTURES:
            raise UnsupportedAdapterError(
                config.where,
                f"model_type {config.model_type!r} has no GGUF form here",
                f"Known: {', '.join(sorted(ARCHITECTURES))}. Export it as peft and convert that",
            )
        gguf = require("gguf", EXTRA)
        self._config = config
        self._known = ARCHITECTURES[config.model_type]
        member = gguf.MODEL_ARCH[self._known.name]
        self.architecture: str = gguf.MODEL_ARCH_NAMES[member]
        """``general.architecture``."""
        self._map: Any = gguf.get_tensor_name_map(member, config.size("num_hidden_layers"))

    def of(self, module: str) -> str:
        """llama.cpp's name of a module's weight, for example ``blk.0.attn_q.weight``.

        Raises:
            UnsupportedAdapterError: it has none.
        """
        name: str | None = self._map.get_name(module)
        if name is None or (module == HEAD and self._tied):
            tied = name is not None
            why = "it is the token embedding there" if tied else "llama.cpp has no such module"
            raise UnsupportedAdapterError(module, f"{why} ({self.architecture})", ELSEWHERE)
        return f"{name}.weight"

    def rows(self, module: str, up: Tensor) -> Tensor:
        """The rows of ``lora_B`` (n x r) in llama.cpp's order.

        Raises:
            MismatchError: n is not a whole number of heads.
        """
        heads = self._heads(module)
        if heads is None:
            return up
        if up.shape[0] % (2 * heads):
            raise MismatchError(
                module,
                f"{up.shape[0]} outputs are not {heads} heads of even size",
                f"Check that the base model is {self._config.where}",
            )
        return up[pair_order(up.shape[0], heads)]

    @property
    def _tied(self) -> bool:
        stated = self._config.fields.get("tie_word_embeddings")
        return self._known.tied if stated is None else bool(stated)

    def _heads(self, module: str) -> int | None:
        if not self._known.rotary_pairs or not module.endswith((".q_proj", ".k_proj")):
            return None
        return self._config.heads if module.endswith(".q_proj") else self._config.key_heads


def pair_order(rows: int, heads: int) -> Tensor:
    """transformers' row for each of llama.cpp's: row 2 i + j of a head is its row j size/2 + i."""
    return torch.arange(rows).reshape(heads, 2, -1).transpose(1, 2).reshape(-1)
