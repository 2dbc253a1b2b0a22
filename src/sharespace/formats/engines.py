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

Plain LoRA as a PEFT folder that vLLM takes as it is.

The rules are those of vLLM 0.32 (``vllm/lora/peft_helper.py``, ``lora_model.py`` and
``vllm/config/lora.py``). It checks neither shapes nor that every layer was found; the factors have
one rank and scaling 1 here, so that it has no pattern to match.

Serving engines take LoRA factors of linear layers and nothing else: what is refused, and why.

Some of it they refuse themselves, some they leave out without a word; here each is one error
before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sharespace.errors import AdapterError, OptionError, UnsupportedAdapterError
from sharespace.files import new_directory
from sharespace.formats.base_config import NAME_IT, BaseConfig, read_base_config
from sharespace.formats.components import COMPONENTS
from sharespace.formats.lora_config import FACTOR
from sharespace.formats.peft import write_folder
from sharespace.formats.plain import ExportOptions, PlainLora, common_rank
from sharespace.subspace.adapter import LayerUpdate

SGLANG = "SGLang"

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")

STACKED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Modules whose factors SGLang puts into one tensor."""

ALIKE = {
    "q_proj": ("q_proj",),
    "k_proj": ("k_proj", "v_proj"),
    "v_proj": ("v_proj", "k_proj"),
    "gate_proj": ("gate_proj", "up_proj"),
    "up_proj": ("up_proj", "gate_proj"),
}
"""Modules of one size."""

MODULES = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "out_proj"),
        *("gate_proj", "up_proj", "gate_up_proj", "down_proj", "lm_head"),
        *("q_a_proj", "kv_a_proj_with_mqa", "q_b_proj", "kv_b_proj"),
    }
)
"""Last words of paths for which SGLang has buffers, whatever the model."""

VLLM = "vLLM"

MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` may be; vLLM's default is 16."""

ELSEWHERE = "Export it as peft, or serve it with `sharespace serve`"


# Part of a kept tensor's key -> what it is.
KINDS: Mapping[str, str] = {
    ".lora_magnitude_vector": "DoRA magnitudes",
    ".lora_embedding_": "LoRA of embeddings",
    ".token_adapter.": "trained tokens",
    ".lora_B.bias": "biases of factors",
}


# Fields of a LoraConfig that change what the factors do when they are served.
OTHER_USE: Mapping[str, str] = {
    "alora_invocation_tokens": "its factors act from certain tokens on (aLoRA)",
    "layer_replication": "it adapts a base model with repeated layers",
}


# All that an engine needs; other fields may be ones that it refuses or misreads.
SERVED = (
    *("peft_type", "task_type", "r", "lora_alpha", "target_modules", "fan_in_fan_out"),
    *("base_model_name_or_path", "revision", "inference_mode", "use_rslora"),
)


def write_sglang(directory: Path, lora: PlainLora, options: ExportOptions) -> list[Path]:
    """Write a task for SGLang.

    Args:
        directory: where to; made whole or not at all.
        lora: the task.
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
    refuse_beyond_lora(lora, SGLANG)
    check_modules(lora.updates)
    rank = common_rank(lora.updates, options.rank)
    whole = replace(lora, updates=stacks_filled(lora, options.base))
    fields = served_fields(whole, rank) | {"target_modules": sorted(whole.updates)}
    with new_directory(directory, overwrite=options.overwrite) as aside:
        write_served(aside, whole, fields, options.dtype)
    return [directory]


def check_modules(modules: Iterable[str]) -> None:
    """Refuse modules that SGLang leaves out, mixes up or stops at.

    Raises:
        UnsupportedAdapterError: there is one.
    """
    seen: dict[tuple[str, str], str] = {}
    for module in modules:
        word, layer = module.rpartition(".")[2], LAYER.search(module)
        if word not in MODULES or ".experts." in module or not (layer or word == "lm_head"):
            names = ", ".join(sorted(MODULES))
            why = f"{SGLANG} has no place for it: it takes {names} of modules named 'layers'"
            raise UnsupportedAdapterError(module, why, ELSEWHERE)
        place = (layer[1] if layer else "", word)
        if place in seen:
            why = f"{SGLANG} takes it and {seen[place]} for one module"
            raise UnsupportedAdapterError(module, why, ELSEWHERE)
        seen[place] = module


def stacks_filled(lora: PlainLora, base: str | None) -> dict[str, LayerUpdate]:
    """The updates, and zeros for modules that SGLang stacks with one of them.

    Raises:
        OptionError: a size is not known.
    """
    updates = dict(lora.updates)
    sizes = _Sizes(lora, base)
    for module, update in lora.updates.items():
        path, _, word = module.rpartition(".")
        for other in next((stack for stack in STACKED if word in stack), ()):
            missing = f"{path}.{other}"
            if missing not in updates:
                updates[missing] = _zeros(sizes.rows(path, other), update)
    return updates


def _zeros(rows: int, like: LayerUpdate) -> LayerUpdate:
    return LayerUpdate(
        torch.zeros(rows, 1, dtype=like.up.dtype),
        torch.zeros(1, like.down.shape[1], dtype=like.down.dtype),
    )


class _Sizes:
    """Output features of modules without an update."""

    def __init__(self, lora: PlainLora, base: str | None) -> None:
        self._lora = lora
        self._base = base
        self._config: BaseConfig | None = None
        self._rows = {m: u.up.shape[0] for m, u in lora.updates.items()}
        self._rows |= {m: shape.out_features for m, shape in lora.shapes.items()}

    def rows(self, path: str, word: str) -> int:
        """Of ``path.word``: as its like in this layer, in another, or by the configuration."""
        for like in ALIKE[word]:
            if (rows := self._rows.get(f"{path}.{like}")) is not None:
                return rows
        anywhere = {LAYER.sub(".", module): rows for module, rows in self._rows.items()}
        for like in ALIKE[word]:
            if (rows := anywhere.get(LAYER.sub(".", f"{path}.{like}"))) is not None:
                return rows
        return self._configured(f"{path}.{word}")

    def _configured(self, module: str) -> int:
        if self._config is None:
            try:
                self._config = read_base_config(self._base, self._lora.base)
            except (AdapterError, OptionError) as error:
                why = f"{SGLANG} needs factors of it, and its size is not known ({error.why})"
                raise OptionError(module, why, NAME_IT) from error
        heads = self._config.heads if module.endswith(".q_proj") else self._config.key_heads
        return heads * self._config.head_dim


def max_lora_rank(rank: int) -> int:
    """The smallest ``--max-lora-rank`` that takes an adapter of this rank.

    Raises:
        OptionError: there is none.
    """
    fitting = [limit for limit in MAX_LORA_RANKS if limit >= rank]
    if not fitting:
        raise OptionError(
            f"rank {rank}",
            f"{VLLM} takes at most {MAX_LORA_RANKS[-1]}",
            "Build the Share model with a smaller k",
        )
    return fitting[0]


def write_vllm(directory: Path, lora: PlainLora, options: ExportOptions) -> list[Path]:
    """Write a task for vLLM.

    Args:
        directory: where to; made whole or not at all.
        lora: the task.
        options: rank, dtype and whether to overwrite.

    Returns:
        The directory.

    Raises:
        UnsupportedAdapterError: the task is more than LoRA of linear layers.
        OptionError: nothing to write, no rank that vLLM takes, or the directory is in use.
        CorruptAdapterError: a factor is not finite, or what was written reads back otherwise.
    """
    refuse_beyond_lora(lora, VLLM)
    rank = common_rank(lora.updates, options.rank)
    max_lora_rank(rank)
    with new_directory(directory, overwrite=options.overwrite) as aside:
        write_served(aside, lora, served_fields(lora, rank), options.dtype)
    return [directory]


def refuse_beyond_lora(lora: PlainLora, engine: str) -> None:
    """Refuse a task that is more than LoRA factors of one model's linear layers.

    Args:
        engine: named in errors.

    Raises:
        UnsupportedAdapterError: heads, biases, magnitudes, embeddings, convolutions, or modules
            of a diffusers pipeline.
    """
    if COMPONENTS in lora.config:
        raise UnsupportedAdapterError(
            "task",
            f"it adapts a diffusers pipeline, which {engine} does not serve",
            "Export it as diffusers or kohya",
        )
    if lora.kept:
        kinds = ", ".join(dict.fromkeys(kind_of(key, lora.kept) for key in lora.kept))
        key = next(iter(lora.kept))
        why = f"carries {kinds} beside its LoRA ({key!r}), which {engine} does not take"
        raise UnsupportedAdapterError("task", why, ELSEWHERE)
    for field, why in OTHER_USE.items():
        if lora.config.get(field):
            raise UnsupportedAdapterError("task", f"{field} is set: {why}", ELSEWHERE)
    for module in lora.updates:
        if module in lora.shapes and lora.shapes[module].kernel:
            why = f"it is a convolution, which {engine} does not take"
            raise UnsupportedAdapterError(module, why, ELSEWHERE)


def kind_of(key: str, kept: Collection[str]) -> str:
    """What a kept tensor is, in a word or two.

    Args:
        kept: keys of all of them.
    """
    found = next((kind for part, kind in KINDS.items() if part in key), None)
    if found:
        return found
    if FACTOR.fullmatch(key):
        return "factors that are kept as they are"
    alone = key.endswith(".bias") and key.removesuffix("bias") + "weight" not in kept
    return "biases" if alone else "heads"


def served_fields(lora: PlainLora, rank: int) -> dict[str, Any]:
    """The fields of an ``adapter_config.json`` that engines read, and none that they stumble over.

    Raises:
        CorruptAdapterError: the original's fields have no usable values.
    """
    fields = lora.fields(rank)
    return {name: fields[name] for name in SERVED if name in fields} | {"bias": "none"}


def write_served(
    folder: Path, lora: PlainLora, fields: Mapping[str, Any], dtype: torch.dtype | None
) -> None:
    """Write a PEFT folder of factors alone, and read it back.

    Raises:
        CorruptAdapterError: a factor is not finite, or what was written reads back otherwise.
    """
    write_folder(folder, lora, lora.tensors(fields["r"], dtype), fields)
