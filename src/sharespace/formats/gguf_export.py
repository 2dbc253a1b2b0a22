"""Plain LoRA as a GGUF file that llama.cpp loads (``--lora``).

Metadata: ``general.type`` "adapter", ``general.architecture`` that of the base model,
``adapter.type`` "lora", ``adapter.lora.alpha`` the rank (so that alpha / rank is 1). Tensors:
``<module>.weight.lora_a`` (r x d) and ``.lora_b`` (n x r); llama.cpp applies b a. Source:
ggml-org/llama.cpp ``convert_lora_to_gguf.py`` and ``src/llama-adapter.cpp``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharespace.errors import CorruptAdapterError, OptionError
from sharespace.extras import require
from sharespace.formats.atomic_dir import new_directory
from sharespace.formats.base_config import read_base_config
from sharespace.formats.export_options import ExportOptions
from sharespace.formats.gguf_names import EXTRA, Names
from sharespace.formats.plain import PlainLora, common_rank, padded
from sharespace.formats.plain_only import refuse_beyond_lora

ENGINE = "llama.cpp"
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_gguf(directory: Path, lora: PlainLora, options: ExportOptions) -> list[Path]:
    """Write a task for llama.cpp.

    Args:
        directory: where to; made whole or not at all. The file in it has its name.
        lora: the task.
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
    refuse_beyond_lora(lora, ENGINE)
    rank = common_rank(lora.updates, options.rank)
    names = Names(read_base_config(options.base, lora.base))
    tensors = gguf_tensors(lora, names, rank, options.dtype)
    file = f"{directory.name}.gguf"
    with new_directory(directory, overwrite=options.overwrite) as aside:
        _write(aside / file, names.architecture, rank, tensors)
        _check(aside / file, tensors)
    return [directory / file]


def gguf_tensors(
    lora: PlainLora, names: Names, rank: int, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """All tensors by llama.cpp's names: ``lora_a`` rank x d, ``lora_b`` n x rank.

    Raises:
        OptionError: a dtype that llama.cpp does not compute with.
        CorruptAdapterError: a number is not finite.
        UnsupportedAdapterError, MismatchError: see ``Names``.
    """
    found: dict[str, Tensor] = {}
    for module, update in lora.updates.items():
        name = names.of(module)
        down, up = padded(update, rank, _usable(dtype or update.up.dtype), None)
        for suffix, tensor in (("lora_a", down), ("lora_b", names.rows(module, up))):
            if not torch.isfinite(tensor).all():
                raise CorruptAdapterError(
                    module, f"NaN or infinity in {suffix} as {tensor.dtype}", "Write it as float32"
                )
            if f"{name}.{suffix}" in found:
                raise CorruptAdapterError(module, f"another module is {name}, too")
            found[f"{name}.{suffix}"] = tensor.contiguous()
    return found


def _usable(dtype: torch.dtype) -> torch.dtype:
    if dtype not in DTYPES:
        known = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise OptionError(f"dtype {dtype}", f"{ENGINE} does not take it", f"Give one of {known}")
    return dtype


def _write(path: Path, architecture: str, rank: int, tensors: Mapping[str, Tensor]) -> None:
    gguf = require("gguf", EXTRA)
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


def _check(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read the file again and compare every bit."""
    gguf = require("gguf", EXTRA)
    found = {t.name: t for t in gguf.GGUFReader(path).tensors}
    same = set(found) == set(tensors) and all(
        found[name].tensor_type == _type(gguf, tensor)
        and list(found[name].shape) == list(reversed(tensor.shape))
        and np.array_equal(found[name].data.view(np.uint8), _bytes(tensor).view(np.uint8))
        for name, tensor in tensors.items()
    )
    if not same:
        raise CorruptAdapterError(
            path.name, "reads back otherwise than it was written", "Report this as a bug"
        )


def _type(gguf: Any, tensor: Tensor) -> Any:
    return gguf.GGMLQuantizationType[DTYPES[tensor.dtype]]


def _bytes(tensor: Tensor) -> Any:
    """As the writer takes it; numpy has no bfloat16, so its bytes go."""
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint8)
    return tensor.numpy()
