"""Plain LoRA in PEFT's form, with all that the adapter carried beside it.

Every module gets ``lora_B = scaling * up`` and ``lora_A = down``, zero-padded to one rank p, with
r = lora_alpha = p, so that loaders which know nothing but ``lora_alpha / r`` apply it rightly.
Kept tensors go under their own keys, bit for bit (only ``lora_B.bias`` is multiplied by the
scaling that PEFT applied to it before).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sharespace.errors import CorruptAdapterError, OptionError
from sharespace.formats.atomic_dir import new_directory
from sharespace.formats.lora_config import lora_scaling
from sharespace.formats.peft import FACTOR, METADATA, PREFIX, read_peft
from sharespace.formats.plain_config import RawFactors, owners, plain_config
from sharespace.formats.safetensors_file import SafetensorsFile
from sharespace.shapes import ModuleShape
from sharespace.subspace.adapter import BaseModel, LayerUpdate

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclass(frozen=True, eq=False)
class PlainLora:
    """What goes into one PEFT directory."""

    updates: Mapping[str, LayerUpdate]
    shapes: Mapping[str, ModuleShape]
    kept: Mapping[str, Tensor]
    config: Mapping[str, Any]
    base: BaseModel


def write_peft(
    directory: str | os.PathLike[str],
    updates: Mapping[str, LayerUpdate],
    *,
    shapes: Mapping[str, ModuleShape] | None = None,
    kept: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
    base: BaseModel | None = None,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a task as plain LoRA that ``PeftModel.from_pretrained`` loads.

    Args:
        directory: where to; made whole or not at all.
        updates: module -> update, up n x r and down r x d of any rank and scaling.
        shapes: needed where a module is a convolution.
        kept: ``Adapter.kept`` or ``Task.kept``.
        config: ``Adapter.config`` or ``Task.config``.
        base: the base model.
        rank: that all factors are padded to; None: the largest.
        dtype: of the factors; None: each as it is.
        overwrite: replace a directory that has something in it.

    Returns:
        The directories that hold an adapter: ``directory``.

    Raises:
        OptionError: nothing to write, the rank is too small, or the directory is in use.
    """
    part = PlainLora(updates, shapes or {}, kept or {}, config or {}, base or BaseModel())
    size = common_rank(updates, rank)
    target = Path(directory)
    with new_directory(target, overwrite=overwrite) as aside:
        write_part(aside, part, size, dtype)
    return [target]


def common_rank(updates: Mapping[str, LayerUpdate], rank: int | None) -> int:
    """The rank that all factors are padded to.

    Raises:
        OptionError: there are no updates, or one has a larger rank.
    """
    if not updates:
        raise OptionError("updates", "there is none, so no adapter to write", "Name a task")
    largest = max(update.up.shape[1] for update in updates.values())
    if rank is not None and rank < largest:
        raise OptionError("rank", f"{rank} is below {largest}", f"Give at least {largest}")
    return rank or largest


def write_part(folder: Path, part: PlainLora, rank: int, dtype: torch.dtype | None) -> None:
    """Write one PEFT directory's files and check that they read back."""
    kept = {key: _kept(part, key, tensor) for key, tensor in part.kept.items()}
    tensors = dict(kept)
    for module, update in part.updates.items():
        down, up = padded(update, rank, dtype, part.shapes.get(module))
        for key, tensor in ((factor_key(module, "A"), down), (factor_key(module, "B"), up)):
            if key in tensors:
                raise OptionError(f"kept[{key!r}]", "has the key of a factor", "Take it out")
            tensors[key] = tensor
    raw = raw_factors(kept, part.config)
    fields = plain_config(part.config, part.updates, raw, rank=rank, base=part.base)
    header = {"format": "pt"} | fields.pop(METADATA, {})
    save_file(tensors, folder / WEIGHTS, metadata=header)
    (folder / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True), encoding="utf-8")
    check_written(folder, tensors, part)


def factor_key(module: str, factor: str) -> str:
    return f"{PREFIX}{module}.lora_{factor}.weight"


def padded(
    update: LayerUpdate, rank: int, dtype: torch.dtype | None, shape: ModuleShape | None
) -> tuple[Tensor, Tensor]:
    """(down rank x d, up n x rank), scaling in up, zeros beyond the update's own rank.

    A convolution's factors have their kernels again: rank x c_in x kernel and n x rank x 1 x 1.
    """
    up = update.up.detach().cpu()
    # In at least float32: the scaling may not be a number of the factors' dtype.
    scaled = up.to(torch.promote_types(up.dtype, torch.float32)) * update.scaling
    down = _zeros_like(update.down, (rank, update.down.shape[1]), dtype)
    down[: update.down.shape[0]] = update.down.detach()
    full = _zeros_like(up, (up.shape[0], rank), dtype)
    full[:, : up.shape[1]] = scaled
    if shape is None or not shape.kernel:
        return down, full
    ones = (1,) * len(shape.kernel)
    return (
        down.reshape(rank, shape.in_channels, *shape.kernel),
        full.reshape(full.shape[0], rank, *ones),
    )


def raw_factors(kept: Mapping[str, Tensor], config: Mapping[str, Any]) -> RawFactors:
    """The LoRA factors among the kept tensors."""
    modules: dict[str, int] = {}
    parameters: dict[str, None] = {}
    for key, tensor in kept.items():
        path, _, embedding = key.removeprefix(PREFIX).rpartition(".lora_embedding_A")
        if path and not embedding:
            modules[path] = tensor.shape[0]
        elif (match := FACTOR.fullmatch(key)) and match[2] == "A":
            path = match[1].removeprefix(PREFIX)
            found = owners(config, path)
            parameters.update(dict.fromkeys(found))
            if not found:
                modules[path] = tensor.shape[0]
    return RawFactors(
        modules,
        tuple(parameters),
        magnitudes=any("lora_magnitude_vector" in key for key in kept),
        embeddings=any(".lora_embedding_" in key for key in kept),
    )


def check_written(folder: Path, tensors: Mapping[str, Tensor], part: PlainLora) -> None:
    """Read the directory back and compare names, shapes and modules.

    Raises:
        CorruptAdapterError: something else came back than was written.
    """
    file = SafetensorsFile.open(folder / WEIGHTS)
    same = {k: (i.shape, i.dtype) for k, i in file.infos.items()} == {
        k: (tuple(t.shape), t.dtype) for k, t in tensors.items()
    }
    adapter = read_peft(file, folder / CONFIG, name="check", source="")
    scalings = {adapter.layer(m).scaling for m in adapter.shapes}
    if not same or set(adapter.shapes) != set(part.updates) or scalings != {1.0}:
        raise CorruptAdapterError(
            folder.name, "reads back otherwise than it was written", "Check the disk"
        )


def _kept(part: PlainLora, key: str, tensor: Tensor) -> Tensor:
    module = key.removeprefix(PREFIX).removesuffix(".lora_B.bias")
    scaled = key.endswith(".lora_B.bias") and module in part.updates
    if scaled:
        scaling = lora_scaling("config", part.config).scaling(module)
        return (tensor.double() * scaling).to(tensor.dtype)
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _zeros_like(factor: Tensor, shape: tuple[int, int], dtype: torch.dtype | None) -> Tensor:
    return torch.zeros(shape, dtype=dtype or factor.dtype)
