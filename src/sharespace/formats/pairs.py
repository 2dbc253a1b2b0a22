"""From pairs of factor tensors in a file to an Adapter, whatever the format calls them.

A format's reader tells the module and the role of a key; what all formats have in common is here:
shapes that must fit, dtypes that are computed with, alphas, and updates that are refused because
they are not B A.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sharespace.errors import (
    AdapterError,
    CorruptAdapterError,
    OptionError,
    UnsupportedAdapterError,
)
from sharespace.formats.weights_file import KeptTensors, TensorInfo, WeightsFile, sha256
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate, ModuleShape, Provenance

FACTOR_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_UNSHARDED = (
    "Save the adapter again from gathered weights (DeepSpeed ZeRO-3 and FSDP shards look like this)"
)

# Updates that are not B A, by the keys of LyCORIS, ComfyUI and Stability AI.
_OTHER_KEYS = {
    r"\.hada_": "LoHa (a Hadamard product of two low-rank matrices)",
    r"\.lokr_": "LoKr (a Kronecker product)",
    r"\.oft_|\.boft_": "OFT (a rotation of the base weights)",
    r"\.glora|\.(a1|a2|b1|b2)\.weight$": "GLoRA",
    r"\.lora_mid\.|\.lora_mid$": "LoCon with a middle factor (a Tucker decomposition)",
    r"\.dora_scale$": "DoRA in LyCORIS' form, whose axis depends on the trainer",
    r"\.diff$|\.diff_b$|\.set_weight$|\.(w|b)_norm$": "full-rank differences of weights",
    r"lora(_linear_layer)?[._](up|down)\.bias$": "a bias of a factor",
    r"^lora_controlnet$": "a Control-LoRA",
}

# What PEFT has a method of, so that its files can be loaded and converted.
_CONVERTIBLE = ("LoHa", "LoKr", "OFT")
_CONVERTED = "Load it with PEFT and convert it to a LoRA: peft.save_as_lora or peft.convert_to_lora"

KeyParser: TypeAlias = "Callable[[str], tuple[str, str] | None]"
"""Key -> (module, role "A", "B" or "alpha"), or None where it is none of these."""

ScalingRule: TypeAlias = "Callable[[str, int, float | None], float]"
"""(module, rank, alpha entry) -> scaling."""


RowRange: TypeAlias = "tuple[int, int]"
"""The first row and the one behind the last."""


@dataclass(frozen=True)
class FactorPair:
    """The factors of one module, by their keys in the file."""

    down: str
    """Key of A: r x d, or r x c_in x kernel for a convolution."""
    up: str
    """Key of B: n x r, or n x r x 1 x 1 for a convolution."""
    scaling: float = 1.0
    rows: tuple[RowRange, ...] = ()
    """Which rows of B are the module's, in this order; none: all of them."""
    transposed: bool = False
    """A is d x r and B is r x n, as mlx-lm has them."""


@dataclass(frozen=True)
class AdapterKeys:
    """The keys of a file by what they are for; every key is in exactly one of the three."""

    pairs: Mapping[str, FactorPair]
    """Adapted module -> its factors."""
    kept: Mapping[str, str]
    """Key under which a tensor is kept -> key in the file."""
    used: frozenset[str] = frozenset()
    """Keys whose value is in ``FactorPair.scaling`` (kohya's alphas)."""


def build_adapter(
    file: WeightsFile,
    keys: AdapterKeys,
    *,
    name: str,
    format: str,
    base: BaseModel,
    config: Mapping[str, Any],
    source: str,
) -> Adapter:
    """The Adapter over a file's tensors; checks every pair's shapes and dtypes, reads none.

    Raises:
        CorruptAdapterError: there is no pair, or the shapes of one don't fit each other.
        UnsupportedAdapterError: factors of a dtype that is not computed with, or only of what is
            kept as it is.
    """
    if not keys.pairs:
        raise _no_pair_error(file, keys)
    sizes = {module: _pair_shape(file, pair) for module, pair in keys.pairs.items()}
    factors = [key for pair in keys.pairs.values() for key in (pair.down, pair.up)]
    return Adapter(
        name=name,
        base=base,
        shapes={module: shape for module, (shape, _) in sizes.items()},
        ranks={module: rank for module, (_, rank) in sizes.items()},
        # The smallest dtype that holds the factors of every dtype in the file.
        dtype=reduce(torch.promote_types, (file.infos[key].dtype for key in factors)),
        layer=FileLayers(file, keys.pairs),
        kept=KeptTensors(file, keys.kept),
        config=config,
        provenance=Provenance(format, source, sha256(file.path)),
        nbytes=sum(info.nbytes for info in file.infos.values()),
    )


def _no_pair_error(file: WeightsFile, keys: AdapterKeys) -> AdapterError:
    other_keys = ", ".join(list(keys.kept)[:3]) or "none at all"
    if any(".lora_" in key for key in keys.kept):
        return UnsupportedAdapterError(
            str(file.path),
            f"adapts only what is kept as it is, like embeddings and experts ({other_keys})",
            "There is nothing to share: use it as it is",
        )
    return CorruptAdapterError(
        str(file.path),
        f"no module has a pair of LoRA factors (tensors: {other_keys})",
        "Nothing was adapted: check target_modules in the training script",
    )


def _pair_shape(file: WeightsFile, pair: FactorPair) -> tuple[ModuleShape, int]:
    """Shape of the module and rank of its update, from the factors' shapes.

    Raises:
        CorruptAdapterError: they don't fit each other.
        UnsupportedAdapterError: a dtype that is not computed with.
    """
    down, up = file.infos[pair.down], file.infos[pair.up]
    for key in (pair.down, pair.up):
        check_factor(file, key)
    if pair.transposed:
        down, up = (TensorInfo(info.dtype, info.shape[::-1]) for info in (down, up))
    # B of a convolution is 1 x 1: the kernel is all in A.
    if len(down.shape) != len(up.shape) or math.prod(up.shape[2:]) != 1:
        raise _misfit(file, pair, "they are not the factors of one linear layer or convolution")
    if down.shape[0] != up.shape[1]:
        raise _misfit(file, pair, f"ranks {down.shape[0]} and {up.shape[1]} differ")
    kernel = tuple(down.shape[2:])
    in_features = math.prod(down.shape[1:])
    rows = sum(end - start for start, end in pair.rows) if pair.rows else up.shape[0]
    shape = ModuleShape(rows, in_features, "conv" if kernel else "linear", kernel)
    return shape, down.shape[0]


def check_factor(file: WeightsFile, key: str) -> None:
    """Refuse a factor of a dtype that is not computed with, or without rows and columns.

    Raises:
        CorruptAdapterError: its shape, or its dtype, is no factor's.
        UnsupportedAdapterError: a dtype that is not computed with.
    """
    info = file.infos[key]
    if not info.dtype.is_floating_point:
        raise CorruptAdapterError(
            str(file.path), f"factor {key!r} has dtype {info.dtype}", "Factors are floating point"
        )
    if info.dtype not in FACTOR_DTYPES:
        raise UnsupportedAdapterError(
            str(file.path), f"factor {key!r} has dtype {info.dtype}", "Save it as F32, F16 or BF16"
        )
    if not 2 <= len(info.shape) <= 5 or 0 in info.shape:
        raise CorruptAdapterError(
            str(file.path), f"factor {key!r} has shape {list(info.shape)}", _UNSHARDED
        )


def _misfit(file: WeightsFile, pair: FactorPair, why: str) -> CorruptAdapterError:
    down, up = (list(file.infos[key].shape) for key in (pair.down, pair.up))
    return CorruptAdapterError(
        str(file.path), f"{pair.down!r} is {down} and {pair.up!r} is {up}: {why}", _UNSHARDED
    )


@dataclass(frozen=True, eq=False)
class FileLayers:
    """Reads the updates of an adapter's file; see ``subspace.adapter.Divisible``."""

    file: WeightsFile
    pairs: Mapping[str, FactorPair]

    def __call__(self, module: str) -> LayerUpdate:
        return _read_layer(self.file, self.pairs, module)

    def part(self, module: str) -> FileLayers:
        """Of one module: a path and the places of two tensors."""
        pair = self.pairs[module]
        return FileLayers(self.file.part(pair.down, pair.up), {module: pair})


def _read_layer(file: WeightsFile, pairs: Mapping[str, FactorPair], module: str) -> LayerUpdate:
    """One module's update, up n x r and down r x d, in the file's dtypes.

    Raises:
        OptionError: the adapter does not adapt the module.
        CorruptAdapterError: a factor holds NaN or infinity, or the file can't be read any more.
    """
    if module not in pairs:
        raise OptionError(f"module {module!r}", f"not adapted by {file.path.name}")
    pair = pairs[module]
    down, up = file.read(pair.down, pair.up)
    for key, tensor in ((pair.down, down), (pair.up, up)):
        if not _finite(tensor):
            raise _not_finite(file, key, tensor)
    if pair.transposed:
        down, up = down.mT.contiguous(), up.mT.contiguous()
    if pair.rows:
        up = torch.cat([up[start:end] for start, end in pair.rows])
    return LayerUpdate(up.reshape(up.shape[0], -1), down.reshape(down.shape[0], -1), pair.scaling)


def _finite(tensor: Tensor) -> bool:
    # NaN and infinity stay in a sum, which is far cheaper than a test of each number; a sum that
    # is not finite may only have overflowed.
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _not_finite(file: WeightsFile, key: str, tensor: Tensor) -> CorruptAdapterError:
    count = int((~torch.isfinite(tensor)).sum())
    return CorruptAdapterError(
        str(file.path),
        f"factor {key!r} holds NaN or infinity in {count} of {tensor.numel()} places",
        "The training diverged or the file is damaged: take an earlier checkpoint",
    )


def sort_by_role(
    file: WeightsFile, keys: Mapping[str, str], parse: KeyParser, scaling: ScalingRule
) -> AdapterKeys:
    """Sort a file's keys into factor pairs with their alphas, and what is kept.

    Args:
        file: the weights.
        keys: key as the format writes it -> key in the file.
        parse: tells module and role of a key.
        scaling: of a module, from its rank and alpha.

    Raises:
        CorruptAdapterError: two keys are one tensor's, or an alpha is not one finite number.
        UnsupportedAdapterError: an update that is not B A, or a factor without its partner.
    """
    refuse_other_keys(file)
    pairs = {}
    used: set[str] = set()
    for module, roles in _by_module(file, keys, parse).items():
        factors = [roles[role] for role in ("A", "B") if role in roles]
        if not factors:
            continue
        refuse_single(file, module, factors)
        rank = (file.infos[roles["A"]].shape or (0,))[0]
        alpha = _read_alpha(file, roles["alpha"]) if "alpha" in roles else None
        pair = FactorPair(roles["A"], roles["B"], scaling(module, rank, alpha))
        if not is_grouped(file, pair):
            pairs[module] = pair
            used.update(roles.values())
    kept_keys = {key: raw for key, raw in keys.items() if raw not in used}
    factor_keys = {key for pair in pairs.values() for key in (pair.down, pair.up)}
    return AdapterKeys(pairs, kept_keys, frozenset(used - factor_keys))


def _by_module(
    file: WeightsFile, keys: Mapping[str, str], parse: KeyParser
) -> dict[str, dict[str, str]]:
    modules: dict[str, dict[str, str]] = {}
    for key, raw in keys.items():
        if (place := parse(key)) is None:
            continue
        module, role = place
        roles = modules.setdefault(module, {})
        if role in roles:
            raise CorruptAdapterError(
                str(file.path),
                f"{roles[role]!r} and {raw!r} are both {role} of module {module!r}",
                "Drop one",
            )
        roles[role] = raw
    return modules


def refuse_other_keys(file: WeightsFile) -> None:
    """Raise UnsupportedAdapterError for an update that is not B A, by its name."""
    for key in file.infos:
        for pattern, what in _OTHER_KEYS.items():
            if re.search(pattern, key):
                raise UnsupportedAdapterError(
                    str(file.path),
                    f"{key!r} is {what}, which is not B A",
                    _CONVERTED
                    if what.startswith(_CONVERTIBLE)
                    else "Train or extract a plain LoRA",
                )


def refuse_single(file: WeightsFile, module: str, keys: Collection[str]) -> None:
    """Raise UnsupportedAdapterError for a factor that has no partner."""
    if len(keys) != 2:
        raise UnsupportedAdapterError(
            str(file.path),
            f"module {module!r} has only one factor, {next(iter(keys))!r}",
            "Save the adapter again with all its tensors",
        )


def is_grouped(file: WeightsFile, pair: FactorPair) -> bool:
    """A convolution with groups > 1: B is n x r / groups, so dW is not B A."""
    down, up = file.infos[pair.down].shape, file.infos[pair.up].shape
    conv = len(down) > 2 and len(up) > 2 and 0 < up[1] < down[0]
    return conv and down[0] % up[1] == 0


def is_stacked(down: tuple[int, ...], up: tuple[int, ...]) -> bool:
    """Whether shapes are those of all experts' factors in one tensor, at most one of them shared.

    B is experts x n x r and A experts x r x d, or 1 x r x d. A convolution's B has its rank second.
    """
    if 3 not in (len(down), len(up)) or not {len(down), len(up)} <= {2, 3}:
        return False
    convolution = len(down) == len(up) and up[1] == down[0] and up[2] == 1
    return not convolution and up[-1] == down[-2]


def alpha_scaling(rank: int, alpha: float | None) -> float:
    """alpha / rank; 1 where the file has no alpha."""
    return 1.0 if alpha is None or rank == 0 else alpha / rank


def _read_alpha(file: WeightsFile, key: str) -> float:
    """The number in an alpha entry.

    Raises:
        CorruptAdapterError: it is not one finite number.
    """
    info = file.infos[key]
    if math.prod(info.shape) != 1 or info.dtype.is_complex:
        shape = f"{info.dtype} of shape {list(info.shape)}"
        raise CorruptAdapterError(str(file.path), f"{key!r} is {shape}", "An alpha is one number")
    value = float(file.read(key)[0].double())
    if not math.isfinite(value):
        raise CorruptAdapterError(str(file.path), f"{key!r} is {value}", "An alpha is finite")
    return value
