"""Plain LoRA as a PEFT folder that SGLang takes as it is.

The rules are those of SGLang 0.5 (``python/sglang/srt/lora``: ``lora.py``, ``utils.py``,
``lora_manager.py`` and ``mem_pool.py``):

- scaling is ``lora_alpha / r`` for all modules: ``rank_pattern``, ``alpha_pattern`` and
  ``use_rslora`` are not read;
- ``target_modules`` is a list, never a regular expression;
- a tensor belongs to the layer after ``layers.`` in its key; one without, and neither embedding
  nor ``lm_head``, is left out without a word;
- q, k and v of a layer become one tensor, so do gate and up: where one has factors, the others
  must (they get zeros here);
- a module is told by the last word of its path, so only one of a layer may have that word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from sharespace.errors import AdapterError, OptionError, UnsupportedAdapterError
from sharespace.files import export_directory
from sharespace.formats.engines import (
    ELSEWHERE,
    NAME_IT,
    BaseConfig,
    read_base_config,
    refuse_beyond_lora,
    served_fields,
    write_served,
    written_rank,
)
from sharespace.formats.plain import ExportOptions, PlainLora, common_rank
from sharespace.subspace.adapter import LayerUpdate

SGLANG = "SGLang"
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")

_STACKED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Modules whose factors SGLang puts into one tensor."""

_ALIKE = {
    "q_proj": ("q_proj",),
    "k_proj": ("k_proj", "v_proj"),
    "v_proj": ("v_proj", "k_proj"),
    "gate_proj": ("gate_proj", "up_proj"),
    "up_proj": ("up_proj", "gate_proj"),
}
"""Modules of one size."""

_MODULES = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "out_proj"),
        *("gate_proj", "up_proj", "gate_up_proj", "down_proj", "lm_head"),
        *("q_a_proj", "kv_a_proj_with_mqa", "q_b_proj", "kv_b_proj"),
    }
)
"""Last words of paths for which SGLang has buffers, whatever the model."""


def write_sglang(path: Path, plain: PlainLora, options: ExportOptions) -> list[Path]:
    """Write a task for SGLang.

    Args:
        path: the directory; made whole or not at all.
        plain: the task.
        options: rank, dtype and whether to overwrite; the base model where a module needs zeros
            of a size that no other layer shows.

    Returns:
        The directory.

    Raises:
        UnsupportedAdapterError: the task is more than LoRA of linear layers, or adapts modules
            that SGLang does not.
        OptionError: nothing to write, the rank is too small, the directory is in use, or a size
            is not known.
        CorruptAdapterError: a factor is not finite, or what was written reads back otherwise.
    """
    refuse_beyond_lora(plain, SGLANG)
    _check_modules(plain.updates)
    rank = common_rank(plain.updates, options.rank)
    whole = replace(plain, updates=_stacks_filled(plain, options.base))
    fields = served_fields(whole, rank) | {"target_modules": sorted(whole.updates)}
    with export_directory(path, overwrite=options.overwrite) as aside:
        write_served(aside, whole, fields, options.dtype)
    return [path]


def _check_modules(modules: Iterable[str]) -> None:
    """Refuse modules that SGLang leaves out, mixes up or stops at.

    Raises:
        UnsupportedAdapterError: there is one.
    """
    seen: dict[tuple[str, str], str] = {}
    for module in modules:
        word, layer = module.rpartition(".")[2], _LAYER.search(module)
        if word not in _MODULES or ".experts." in module or not (layer or word == "lm_head"):
            names = ", ".join(sorted(_MODULES))
            why = f"{SGLANG} has no place for it: it takes {names} of modules named 'layers'"
            raise UnsupportedAdapterError(module, why, ELSEWHERE)
        place = (layer[1] if layer else "", word)
        if place in seen:
            why = f"{SGLANG} takes it and {seen[place]} for one module"
            raise UnsupportedAdapterError(module, why, ELSEWHERE)
        seen[place] = module


def _stacks_filled(plain: PlainLora, base: str | None) -> dict[str, LayerUpdate]:
    """The updates, and zeros for modules that SGLang stacks with one of them.

    Raises:
        OptionError: a size is not known.
    """
    updates = dict(plain.updates)
    sizes = _SglangSizes(plain, base)
    for module, update in plain.updates.items():
        path, _, word = module.rpartition(".")
        for stacked in next((stack for stack in _STACKED if word in stack), ()):
            missing = f"{path}.{stacked}"
            if missing not in updates:
                updates[missing] = _zeros(sizes.rows(path, stacked), update)
    return updates


def _zeros(rows: int, like: LayerUpdate) -> LayerUpdate:
    return LayerUpdate(
        torch.zeros(rows, 1, dtype=like.up.dtype),
        torch.zeros(1, like.down.shape[1], dtype=like.down.dtype),
    )


class _SglangSizes:
    """Output features of modules without an update."""

    def __init__(self, plain: PlainLora, base: str | None) -> None:
        self._plain = plain
        self._base = base
        self._config: BaseConfig | None = None
        self._rows = {m: u.up.shape[0] for m, u in plain.updates.items()}
        self._rows |= {m: shape.out_features for m, shape in plain.shapes.items()}

    def rows(self, path: str, word: str) -> int:
        """Output features of ``path.word``.

        They are those of a module alike in this layer, else in another layer, else what the base
        model's configuration says.
        """
        for like in _ALIKE[word]:
            if (rows := self._rows.get(f"{path}.{like}")) is not None:
                return rows
        anywhere = {_LAYER.sub(".", module): rows for module, rows in self._rows.items()}
        for like in _ALIKE[word]:
            if (rows := anywhere.get(_LAYER.sub(".", f"{path}.{like}"))) is not None:
                return rows
        return self._configured(f"{path}.{word}")

    def _configured(self, module: str) -> int:
        if self._config is None:
            try:
                self._config = read_base_config(self._base, self._plain.base)
            except (AdapterError, OptionError) as error:
                why = f"{SGLANG} needs factors of it, and its size is not known ({error.why})"
                raise OptionError(module, why, NAME_IT) from error
        heads = self._config.heads if module.endswith(".q_proj") else self._config.key_heads
        return heads * self._config.head_dim


def sglang_options(written: list[Path]) -> list[str]:
    """What SGLang has to be started with to take an export."""
    return ["--enable-lora", "--max-lora-rank", str(written_rank(written))]
