"""The ``adapter_config.json`` of an exported plain LoRA."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sharespace.formats.lora_config import (
    LoraScaling,
    lora_scaling,
    parameter_of,
    target_parameters,
)
from sharespace.subspace.adapter import BaseModel

# About how the factors were started or which modules were searched: settled by the factors and by
# the list of modules themselves, and some of it changes the base model when it is loaded.
SETTLED: Mapping[str, Any] = {
    "init_lora_weights": True,
    "eva_config": None,
    "corda_config": None,
    "lora_ga_config": None,
    "loftq_config": {},
    "exclude_modules": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "use_rslora": False,
    "inference_mode": True,
    "peft_type": "LORA",
}


@dataclass(frozen=True)
class RawFactors:
    """LoRA factors that are exported as they were: rank and scaling of their own."""

    modules: Mapping[str, int]
    """Embedding or grouped convolution -> its rank."""
    parameters: tuple[str, ...] = ()
    """Paths of parameters (``target_parameters``) that have factors."""
    magnitudes: bool = False
    """There are DoRA magnitudes."""
    embeddings: bool = False


def plain_config(
    config: Mapping[str, Any],
    modules: Iterable[str],
    raw: RawFactors,
    *,
    rank: int,
    base: BaseModel | None,
) -> dict[str, Any]:
    """The config of plain factors of one rank and scaling 1, beside raw factors.

    Args:
        config: the original adapter's fields, as PEFT wrote them; unknown ones are handed on.
        modules: paths of the modules with plain factors.
        raw: what is exported as it was.
        rank: of the plain factors.
        base: the model it belongs to; None: the one the config states.

    Raises:
        CorruptAdapterError: the original's fields have no usable values.
    """
    plain = sorted(modules)
    fields = {"task_type": None, "bias": "none"} | dict(config) | dict(SETTLED)
    scaling = lora_scaling("config", config)
    fields.update(_ranks(plain, raw, scaling, rank))
    fields["target_modules"] = _targets([*plain, *raw.modules])
    if base is not None:
        fields |= {"base_model_name_or_path": base.id, "revision": base.revision}
    fields["use_dora"] = raw.magnitudes
    if raw.embeddings:
        # A tied output layer would share the raw embedding factors instead of loading its own.
        fields["ensure_weight_tying"] = False
    return fields


def owners(config: Mapping[str, Any], module: str) -> list[str]:
    """Paths of the targeted parameters that a module's raw factors may belong to."""
    targets = target_parameters("config", config)
    owner = re.sub(r"(\.base_layer)+$", "", module)
    found = [target for target in targets if parameter_of(owner, [target])]
    return [f"{owner}.{target.rpartition('.')[2]}" for target in found]


def exact(modules: Iterable[str]) -> str:
    """A pattern that PEFT matches against these full paths and no others."""
    paths = [re.escape(module) for module in modules]
    return f"^{paths[0]}" if len(paths) == 1 else f"^(?:{'|'.join(paths)})"


def _ranks(plain: list[str], raw: RawFactors, scaling: LoraScaling, rank: int) -> dict[str, Any]:
    """r, lora_alpha and patterns, so that plain factors have scaling 1 and raw ones their own.

    PEFT takes no notice of patterns for parameters when it checks that patterns matched, and
    warns; so with parameters, *their* rank is the default and the plain modules have the pattern.
    """
    own = {exact([m]): (r, scaling.plain_alpha(m)) for m, r in raw.modules.items()}
    default: tuple[int, float] = (rank, rank)
    if raw.parameters:
        default = (scaling.r, LoraScaling(scaling.r, scaling.alpha, scaling.rslora).plain_alpha(""))
        for path in raw.parameters:
            own[exact([path])] = (scaling.rank(path), scaling.plain_alpha(path))
        if plain:
            own[exact(plain)] = (rank, rank)
    return {
        "r": default[0],
        "lora_alpha": _number(default[1]),
        "rank_pattern": {key: r for key, (r, _) in own.items() if r != default[0]},
        "alpha_pattern": {key: _number(a) for key, (_, a) in own.items() if a != default[1]},
    }


def _targets(modules: list[str]) -> list[str] | str:
    """What matches exactly these modules.

    PEFT matches an entry of a list at the end of a path, so a name without a dot ("head") would
    match "x.head" too; there a regular expression, which is matched in full, says what is meant.
    """
    own = sorted({m for m in modules if ".base_layer." not in m})
    if all("." in module for module in own):
        return own
    return f"(?:{'|'.join(re.escape(module) for module in own)})"


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value
