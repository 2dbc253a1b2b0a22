"""Plain LoRA as a GGUF file that llama.cpp loads (``--lora``), with llama.cpp's names of modules.

Metadata: ``general.type`` "adapter", ``general.architecture`` that of the base model,
``adapter.type`` "lora", ``adapter.lora.alpha`` the rank (so that alpha / rank is 1). Tensors:
``<module>.weight.lora_a`` (r x d) and ``.lora_b`` (n x r); llama.cpp applies b a. Source:
ggml-org/llama.cpp ``convert_lora_to_gguf.py`` and ``src/llama-adapter.cpp``.

Names of modules are those of the ``gguf`` package. What it does not say is here: which of its
architectures a model is, and whether the converter reorders rows of queries and keys. Source:
ggml-org/llama.cpp ``convert_hf_to_gguf.py`` (``conversion/*.py``) and ``src/llama-adapter.cpp``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharespace.errors import (
    CorruptAdapterError,
    MismatchError,
    OptionError,
    UnsupportedAdapterError,
)
from sharespace.extras import require
from sharespace.files import export_directory
from sharespace.formats.companions import write_files_of
from sharespace.formats.engines import ELSEWHERE, BaseConfig, read_base_config, refuse_beyond_lora
from sharespace.formats.plain import ExportOptions, PlainLora, check_updates, common_rank, padded
from sharespace.subspace.adapter import LayerUpdate

LLAMA_CPP = "llama.cpp"
_GGUF_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_GGUF_EXTRA = "gguf"
_GGUF_HEAD = "lm_head"


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


def write_gguf(path: Path, plain: PlainLora, options: ExportOptions) -> list[Path]:
    """Write a task for llama.cpp.

    Args:
        path: the directory; made whole or not at all. The file in it has its name.
        plain: the task.
        options: rank, dtype (float32, float16 or bfloat16), base model and whether to overwrite.

    Returns:
        The file.

    Raises:
        UnsupportedAdapterError: the task is more than LoRA of linear layers, or of an
            architecture or module without a name there.
        OptionError: nothing to write, an unusable rank or dtype, the directory is in use, or
            the base model is not known.
        AdapterError: the base model's configuration can't be had.
        MismatchError: the factors don't fit the base model's heads.
        CorruptAdapterError: a factor is not finite, or what was written reads back otherwise.
        MissingExtraError: the ``gguf`` package is not installed.
    """
    refuse_beyond_lora(plain, LLAMA_CPP)
    rank = common_rank(plain.updates, options.rank)
    names = LlamaCppNames(read_base_config(options.base, plain.base))
    tensors = _gguf_tensors(plain, names, rank, options.dtype)
    file = f"{path.name}.gguf"
    with export_directory(path, overwrite=options.overwrite) as aside:
        _write(aside / file, names.architecture, rank, tensors)
        scaling = _check(aside / file, tensors) / rank
        _check_each(plain, names, tensors, scaling)
        write_files_of(aside, plain.files)
    return [path / file]


def _gguf_tensors(
    plain: PlainLora, names: LlamaCppNames, rank: int, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """All tensors by llama.cpp's names: ``lora_a`` rank x d, ``lora_b`` n x rank.

    Raises:
        OptionError: a dtype that llama.cpp does not compute with.
        CorruptAdapterError: a number is not finite.
        UnsupportedAdapterError, MismatchError: see ``LlamaCppNames``.
    """
    tensors: dict[str, Tensor] = {}
    for module, update in plain.updates.items():
        name = names.of(module)
        down, up = padded(module, update, rank, _usable(dtype or update.up.dtype), None)
        for suffix, tensor in (("lora_a", down), ("lora_b", names.rows(module, up))):
            if not torch.isfinite(tensor).all():
                raise CorruptAdapterError(
                    module, f"NaN or infinity in {suffix} as {tensor.dtype}", "Write it as float32"
                )
            if f"{name}.{suffix}" in tensors:
                raise CorruptAdapterError(module, f"another module is {name}, too")
            tensors[f"{name}.{suffix}"] = tensor.contiguous()
    return tensors


def _usable(dtype: torch.dtype) -> torch.dtype:
    if dtype not in _GGUF_DTYPES:
        known = ", ".join(str(d).removeprefix("torch.") for d in _GGUF_DTYPES)
        raise OptionError(f"dtype {dtype}", f"{LLAMA_CPP} does not take it", f"Give one of {known}")
    return dtype


def _write(path: Path, architecture: str, rank: int, tensors: Mapping[str, Tensor]) -> None:
    gguf = require("gguf", _GGUF_EXTRA)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    writer.add_name(path.stem)
    for name, tensor in tensors.items():
        writer.add_tensor(name, _bytes(tensor), raw_dtype=_type(gguf, tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check_each(
    plain: PlainLora, names: LlamaCppNames, tensors: Mapping[str, Tensor], scaling: float
) -> None:
    """Compare each module's update with the task's, in llama.cpp's order of rows."""
    written, meant = {}, {}
    for module, update in plain.updates.items():
        name = names.of(module)
        written[module] = LayerUpdate(tensors[f"{name}.lora_b"], tensors[f"{name}.lora_a"], scaling)
        meant[module] = LayerUpdate(names.rows(module, update.up), update.down, update.scaling)
    check_updates(written, meant)


def _check(path: Path, tensors: Mapping[str, Tensor]) -> float:
    """Read the file again, compare every bit, and return its alpha."""
    gguf = require("gguf", _GGUF_EXTRA)
    reader = gguf.GGUFReader(path)
    written = {t.name: t for t in reader.tensors}
    same = set(written) == set(tensors) and all(
        written[name].tensor_type == _type(gguf, tensor)
        and list(written[name].shape) == list(reversed(tensor.shape))
        and np.array_equal(written[name].data.view(np.uint8), _bytes(tensor).view(np.uint8))
        for name, tensor in tensors.items()
    )
    if not same:
        raise CorruptAdapterError(
            path.name, "reads back otherwise than it was written", "Report this as a bug"
        )
    return float(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].parts[-1][0])


def _type(gguf: Any, tensor: Tensor) -> Any:
    return gguf.GGMLQuantizationType[_GGUF_DTYPES[tensor.dtype]]


def _bytes(tensor: Tensor) -> Any:
    """As the writer takes it; numpy has no bfloat16, so its bytes go."""
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint8)
    return tensor.numpy()


class LlamaCppNames:
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
        gguf = require("gguf", _GGUF_EXTRA)
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
        if name is None or (module == _GGUF_HEAD and self._tied):
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


def gguf_options(written: list[Path]) -> list[str]:
    """What llama.cpp's programs have to be started with to take an export."""
    return ["--lora", str(written[0])]
