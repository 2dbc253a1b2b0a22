"""What diffusers' and kohya's files have in common: roles of keys, and alphas beside factors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.formats.pairs import Contents, Pair, is_grouped, refuse_single
from sharespace.formats.tensors import WeightsFile

# Updates that are not B A, by the keys of LyCORIS, ComfyUI and Stability AI.
OTHER_UPDATES = {
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


Parse: TypeAlias = "Callable[[str], tuple[str, str] | None]"
"""Key -> (module, role "A", "B" or "alpha"), or None where it is none of these."""
Scaling: TypeAlias = "Callable[[str, int, float | None], float]"
"""(module, rank, alpha entry) -> scaling."""


def find_contents(
    file: WeightsFile, keys: Mapping[str, str], parse: Parse, scaling: Scaling
) -> Contents:
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
    for module, found in _by_module(file, keys, parse).items():
        factors = [found[role] for role in ("A", "B") if role in found]
        if not factors:
            continue
        refuse_single(file, module, factors)
        rank = (file.infos[found["A"]].shape or (0,))[0]
        alpha = read_alpha(file, found["alpha"]) if "alpha" in found else None
        pair = Pair(found["A"], found["B"], scaling(module, rank, alpha))
        if not is_grouped(file, pair):
            pairs[module] = pair
            used.update(found.values())
    kept = {key: raw for key, raw in keys.items() if raw not in used}
    factor_keys = {key for pair in pairs.values() for key in (pair.down, pair.up)}
    return Contents(pairs, kept, frozenset(used - factor_keys))


def alpha_scaling(rank: int, alpha: float | None) -> float:
    """alpha / rank; 1 where the file has no alpha."""
    return 1.0 if alpha is None or rank == 0 else alpha / rank


def read_alpha(file: WeightsFile, key: str) -> float:
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


def refuse_other_keys(file: WeightsFile) -> None:
    """Raise UnsupportedAdapterError for an update that is not B A, by its name."""
    for key in file.infos:
        for pattern, what in OTHER_UPDATES.items():
            if re.search(pattern, key):
                raise UnsupportedAdapterError(
                    str(file.path),
                    f"{key!r} is {what}, which is not B A",
                    "Train or extract a plain LoRA",
                )


def _by_module(
    file: WeightsFile, keys: Mapping[str, str], parse: Parse
) -> dict[str, dict[str, str]]:
    modules: dict[str, dict[str, str]] = {}
    for key, raw in keys.items():
        if (place := parse(key)) is None:
            continue
        module, role = place
        found = modules.setdefault(module, {})
        if role in found:
            raise CorruptAdapterError(
                str(file.path),
                f"{found[role]!r} and {raw!r} are both {role} of module {module!r}",
                "Drop one",
            )
        found[role] = raw
    return modules
