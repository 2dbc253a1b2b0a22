"""Plain LoRA as a directory that ``PeftModel.from_pretrained`` loads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sharespace.errors import CorruptAdapterError
from sharespace.formats.lora_config import CONFIG
from sharespace.formats.atomic_dir import new_directory
from sharespace.formats.peft import read_peft
from sharespace.formats.plain import PlainLora, common_rank, split_components
from sharespace.formats.safetensors_file import SafetensorsFile, write_tensors
from sharespace.shapes import ModuleShape
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate

WEIGHTS = "adapter_model.safetensors"


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
    """Write a task as plain LoRA in PEFT's form (see ``plain``).

    Args:
        directory: where to; made whole or not at all.
        updates: module -> update, up n x r and down r x d of any rank and scaling.
        shapes: needed where a module is a convolution.
        kept: ``Adapter.kept`` or ``Task.kept``.
        config: ``Adapter.config`` or ``Task.config``; fields that the export does not set are
            handed on.
        base: the base model; None: what ``config`` says.
        rank: that all factors are padded to; None: the largest.
        dtype: of the factors; None: each as it is.
        overwrite: replace a directory that has something in it.

    Returns:
        The directories that hold an adapter: ``directory``, or one below it per component where
        the task came from a pipeline's adapter with several.

    Raises:
        OptionError: nothing to write, the rank is too small, or the directory is in use.
        CorruptAdapterError: a factor is not finite, or what was written reads back otherwise.
    """
    lora = PlainLora(updates, shapes or {}, kept or {}, config or {}, base)
    size = common_rank(updates, rank)
    parts = split_components(lora)
    target = Path(directory)
    with new_directory(target, overwrite=overwrite) as aside:
        for name, part in parts.items():
            folder = aside / name if len(parts) > 1 else aside
            folder.mkdir(exist_ok=True)
            write_folder(folder, part, part.tensors(size, dtype), part.fields(size))
    return [target / name for name in parts] if len(parts) > 1 else [target]


def write_folder(
    folder: Path, part: PlainLora, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]
) -> None:
    """Write weights and config into a folder that is there, and compare what reads back.

    Raises:
        CorruptAdapterError: a factor is not finite, or something else came back.
    """
    write_tensors(folder / WEIGHTS, tensors, part.header)
    text = json.dumps(fields, indent=2, sort_keys=True, allow_nan=False)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    file = SafetensorsFile.open(folder / WEIGHTS)
    adapter = read_peft(file, folder / CONFIG, name="written", source="")
    check_written(file, tensors, adapter, set(part.updates))


def check_written(
    file: SafetensorsFile, tensors: Mapping[str, Tensor], adapter: Adapter, modules: set[str]
) -> None:
    """Compare a written file with what was meant: names, shapes, dtypes, modules and scalings.

    Raises:
        CorruptAdapterError: something else came back than was written.
    """
    meant = {key: (tuple(t.shape), t.dtype) for key, t in tensors.items()}
    found = {key: (info.shape, info.dtype) for key, info in file.infos.items()}
    scalings = {adapter.layer(module).scaling for module in adapter.shapes}
    if meant != found or set(adapter.shapes) != modules or scalings != {1.0}:
        raise CorruptAdapterError(
            file.path.name, "reads back otherwise than it was written", "Report this as a bug"
        )
