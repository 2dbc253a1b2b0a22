"""Plain LoRA: every module with scaling 1 and one rank, whatever file it then goes into.

Every module gets ``lora_B = scaling * up`` and ``lora_A = down``, zero-padded to one rank p, with
r = lora_alpha = p, so that loaders which know nothing but ``lora_alpha / r`` apply it rightly.
Kept tensors go under their own keys, bit for bit (only ``lora_B.bias`` is multiplied by the
scaling that PEFT applied to it before). Keys here are PEFT's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sharespace.errors import CorruptAdapterError, OptionError, UnsupportedAdapterError
from sharespace.formats.companions import LABELS
from sharespace.formats.lora_config import (
    COMPONENTS,
    FACTOR,
    LORA_METADATA,
    METADATA,
    PREFIX,
    RawFactors,
    component_config,
    lora_scaling,
    owners,
    plain_config,
    split_component,
)
from sharespace.formats.pairs import FACTOR_DTYPES, is_stacked
from sharespace.options import check_options, option
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate, ModuleShape

_LOST_BY_CAST = 0.01
"""Fraction of a factor's norm that a cast may take: more than the rounding of bfloat16, which is at
most 0.004, and less than anybody would call the same adapter."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export, the same for every target; a target ignores those it has no use for."""

    rank: int | None = option(None, least=1)
    """Pad all factors to this rank; None: the largest that a module needs."""
    dtype: torch.dtype | None = None
    """Dtype of the factors; None: each as it is."""
    base: str | None = None
    """Folder or Hub id of the base model, for its ``config.json``; None: what the task states."""
    overwrite: bool = False
    """Replace a directory that has something in it."""
    component: str = "unet"
    """Model of a pipeline that the modules belong to, where the task came from none (diffusers)."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.dtype is not None and self.dtype not in FACTOR_DTYPES:
            known = ", ".join(map(str, FACTOR_DTYPES))
            raise OptionError(
                f"dtype={self.dtype!r}", "factors are not written in it", f"Give one of {known}"
            )


@dataclass(frozen=True, eq=False)
class PlainLora:
    """A task on its way to a file: any ranks and scalings, and what is kept beside the factors."""

    updates: Mapping[str, LayerUpdate]
    """Module -> update, up n x r and down r x d."""
    shapes: Mapping[str, ModuleShape] = field(default_factory=dict)
    """Module -> shape; needed for convolutions, whose kernels are reshaped."""
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """What is not compressed: ``Adapter.kept`` or ``Task.kept``."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What an export needs: ``Adapter.config`` or ``Task.config``."""
    base: BaseModel | None = None
    """The base model; None: what ``config`` says."""
    files: Mapping[str, Tensor] = field(default_factory=dict)
    """``Adapter.files`` or ``Task.files``."""
    labels: tuple[str, ...] = ()
    """``Adapter.labels`` or ``Task.labels``."""

    @classmethod
    def from_adapter(cls, adapter: Adapter) -> PlainLora:
        """All of an adapter; its factors are read here.

        Args:
            adapter: what is to be written.
        """
        updates = {module: adapter.layer(module) for module in adapter.shapes}
        return cls(
            updates,
            adapter.shapes,
            adapter.kept,
            adapter.config,
            adapter.base,
            adapter.files,
            adapter.labels,
        )

    def tensors(self, rank: int, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """All tensors by PEFT's keys, each with memory of its own.

        Args:
            rank: rank that all factors are padded to with zeros.
            dtype: dtype of the factors; None: each as it is.

        Raises:
            OptionError: a kept tensor has the key of a factor.
        """
        tensors = {key: self._kept_tensor(key, tensor) for key, tensor in self.kept.items()}
        for module, update in self.updates.items():
            down, up = padded(module, update, rank, dtype, self.shapes.get(module))
            for key, tensor in ((factor_key(module, "A"), down), (factor_key(module, "B"), up)):
                if key in tensors:
                    raise OptionError(f"kept[{key!r}]", "has the key of a factor", "Take it out")
                tensors[key] = tensor
        return tensors

    def fields(self, rank: int) -> dict[str, Any]:
        """The fields of its LoraConfig.

        Args:
            rank: rank that the factors are padded to.

        Raises:
            CorruptAdapterError: the original's fields have no usable values.
        """
        config = {k: v for k, v in self.config.items() if k not in (METADATA, COMPONENTS)}
        raw = raw_factors(self.kept, config)
        return plain_config(config, self.updates, raw, rank=rank, base=self.base)

    @property
    def header(self) -> dict[str, str]:
        """Entries of the original file's header, but those that the fields say anew."""
        entries = {"format": "pt"} | dict(self.config.get(METADATA, {}))
        if self.labels:
            entries[LABELS] = json.dumps(list(self.labels))
        return {key: value for key, value in entries.items() if key != LORA_METADATA}

    def _kept_tensor(self, key: str, tensor: Tensor) -> Tensor:
        module = key.removeprefix(PREFIX).removesuffix(".lora_B.bias")
        if key.endswith(".lora_B.bias") and module in self.updates:
            scaling = lora_scaling("config", self.config).scaling(module)
            # PEFT applies B A x + b, then the scaling; here the scaling is in B, so it is in b.
            return (tensor.double() * scaling).to(tensor.dtype)
        # A copy: safetensors refuses two keys that share memory, as tied weights do.
        return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


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
    # An update of rank 0 (a factor that is all zeros) is written as zeros: loaders take no rank 0.
    return rank or max(largest, 1)


def factor_key(module: str, factor: str) -> str:
    """PEFT's key of a module's factor "A" or "B"."""
    return f"{PREFIX}{module}.lora_{factor}.weight"


def padded(
    module: str,
    update: LayerUpdate,
    rank: int,
    dtype: torch.dtype | None,
    shape: ModuleShape | None,
) -> tuple[Tensor, Tensor]:
    """(down rank x d, up n x rank), scaling in up, zeros beyond the update's own rank.

    A convolution's factors have their kernels again: rank x c_in x kernel and n x rank x 1 x 1.

    Raises:
        OptionError: the dtype has no numbers as large, or as small, as those of the module.
    """
    up = update.up.detach().cpu()
    # In at least float32: the scaling may not be a number of the factors' dtype.
    scaled = up.to(torch.promote_types(up.dtype, torch.float32)) * update.scaling
    down = torch.zeros(rank, update.down.shape[1], dtype=dtype or update.down.dtype)
    down[: update.down.shape[0]] = update.down.detach()
    full = torch.zeros(up.shape[0], rank, dtype=dtype or up.dtype)
    full[:, : up.shape[1]] = scaled
    _check_cast(module, down[: update.down.shape[0]], update.down)
    _check_cast(module, full[:, : up.shape[1]], scaled)
    if shape is None or not shape.kernel:
        return down, full
    ones = (1,) * len(shape.kernel)
    kernels = down.reshape(rank, shape.in_channels, *shape.kernel)
    return kernels, full.reshape(full.shape[0], rank, *ones)


def _check_cast(module: str, written: Tensor, original: Tensor) -> None:
    """Refuse a factor that its dtype does not hold: what is too large would be infinite, and what
    is too small 0."""
    if written.dtype == original.dtype:
        return
    size = float(original.double().norm())
    lost = float((written.double() - original.detach().cpu().double()).norm())
    if not lost <= _LOST_BY_CAST * size:
        name = str(written.dtype).removeprefix("torch.")
        size_word = "small" if math.isfinite(lost) else "large"
        raise OptionError(
            f"module {module!r}",
            f"its factors hold numbers too {size_word} for {name}",
            "Write it as float32",
        )


def check_updates(written: Mapping[str, LayerUpdate], updates: Mapping[str, LayerUpdate]) -> None:
    """Compare each update that was written with the one that was meant: a wrong scale is another.

    Args:
        written: module -> update as a reader of the export has it.
        updates: the same modules -> updates of the task.

    Raises:
        CorruptAdapterError: a module is missing, or its update differs by more than 1e-5 of its
            norm and the rounding of the dtype that it was written in.
    """
    for module, update in updates.items():
        actual = written.get(module)
        lost, allowed = (math.inf, 0.0) if actual is None else _difference(actual, update)
        if not lost <= allowed:
            why = (
                "missing in what was written" if actual is None else "was written as another update"
            )
            raise CorruptAdapterError(f"module {module!r}", why, "Report this as a bug")


def _difference(written: LayerUpdate, update: LayerUpdate) -> tuple[float, float]:
    """|dW' - dW|, without a matrix n x d, and how much of it may be rounding."""
    up, down = (
        update.scaling * update.up.detach().cpu().double(),
        update.down.detach().cpu().double(),
    )
    if written.up.shape[0] != up.shape[0] or written.down.shape[1] != down.shape[1]:
        return math.inf, 0.0
    up_written = written.scaling * written.up.double()
    r_up = torch.linalg.qr(torch.cat([up_written, -up], dim=1), mode="r")[1]
    r_down = torch.linalg.qr(torch.cat([written.down.double(), down]).mT, mode="r")[1]
    lost = float(torch.linalg.matrix_norm(r_up @ r_down.mT))
    columns, rows = torch.linalg.vector_norm(up, dim=0), torch.linalg.vector_norm(down, dim=1)
    limits = torch.finfo(written.up.dtype)
    # Below its smallest normal number a dtype has a fixed step (1e-7 of float16's).
    step = limits.tiny * limits.eps
    below = step * (up.numel() ** 0.5 * float(down.norm()) + down.numel() ** 0.5 * float(up.norm()))
    # Not of |dW|: columns that cancel each other are rounded by their own size.
    rounding = 2 * limits.eps * float((columns * rows).sum())
    norm = float(
        torch.linalg.matrix_norm(r_up[:, up_written.shape[1] :] @ r_down[:, len(written.down) :].mT)
    )
    return lost, 1e-5 * norm + rounding + below


def is_flat_factor(key: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor has the key of a factor, and no rows and columns."""
    return (".lora_embedding_" in key or FACTOR.fullmatch(key) is not None) and len(shape) < 2


def flat_factor(key: str, where: str) -> CorruptAdapterError:
    """The error for such a tensor.

    Args:
        where: the file, or the tensor itself.
    """
    return CorruptAdapterError(where, f"{key!r} has no rows and columns", "Save the adapter again")


def raw_factors(kept: Mapping[str, Tensor], config: Mapping[str, Any]) -> RawFactors:
    """The LoRA factors among the kept tensors."""
    modules: dict[str, int] = {}
    parameters: dict[str, None] = {}
    for key, tensor in kept.items():
        if is_flat_factor(key, tuple(tensor.shape)):
            raise flat_factor(key, repr(key))
        path, _, rest = key.removeprefix(PREFIX).rpartition(".lora_embedding_A")
        if path and not rest:
            modules[path] = tensor.shape[0]
        elif (match := FACTOR.fullmatch(key)) and match[2] == "A":
            path = match[1].removeprefix(PREFIX)
            owned = owners(config, path)
            parameters.update(dict.fromkeys(owned))
            if not owned:
                up = kept[f"{match[1]}.lora_B.weight"].shape
                stacked = is_stacked(tuple(tensor.shape), tuple(up))
                modules[path] = tensor.shape[-2 if stacked else 0]
    return RawFactors(
        modules,
        tuple(parameters),
        magnitudes=any(".lora_magnitude_vector" in key for key in kept),
        embeddings=any(".lora_embedding_" in key for key in kept),
    )


def split_components(lora: PlainLora) -> dict[str, PlainLora]:
    """One plain LoRA per component of a pipeline, with the component's own module paths.

    Only for what came from diffusers or kohya; all else is one component without a name. Kept
    tensors that belong to none of the components stay, under their own keys, with the first.

    Raises:
        UnsupportedAdapterError: a component's name can't be a folder's.
    """
    if COMPONENTS not in lora.config:
        return {"": lora}
    names = sorted({split_component(module)[0] for module in lora.updates})
    for name in names:
        if not re.fullmatch(r"\w+", name):
            raise UnsupportedAdapterError(f"component {name!r}", "is no plain word")
    return {name: _component(lora, name, first=name == names[0], names=names) for name in names}


def _component(lora: PlainLora, name: str, *, first: bool, names: list[str]) -> PlainLora:
    start = name + "."
    kept_tensors = {
        PREFIX + key.removeprefix(start): lora.kept[key]
        for key in lora.kept
        if key.startswith(start)
    }
    if first:
        starts = tuple(f"{component}." for component in names)
        kept_tensors |= {key: lora.kept[key] for key in lora.kept if not key.startswith(starts)}
    header = {METADATA: dict(lora.config.get(METADATA, {}))}
    return replace(
        lora,
        updates={k.removeprefix(start): v for k, v in lora.updates.items() if k.startswith(start)},
        shapes={k.removeprefix(start): v for k, v in lora.shapes.items() if k.startswith(start)},
        kept=kept_tensors,
        files=lora.files if first else {},
        config=component_config("config", lora.config, name) | header,
    )
