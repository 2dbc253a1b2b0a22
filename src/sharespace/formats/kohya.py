"""LoRA files of kohya's sd-scripts: ``lora_unet_<flat path>.lora_down.weight`` and ``.alpha``.

Source: kohya-ss/sd-scripts ``networks/lora.py``. Scaling is alpha / rank, 1 without an alpha.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sharespace.errors import UnsupportedAdapterError
from sharespace.formats.components import COMPONENTS, split_component
from sharespace.formats.factors import alpha_scaling, find_contents
from sharespace.formats.kohya_names import flatten, unflatten
from sharespace.formats.pairs import build_adapter
from sharespace.formats.peft import header_entries
from sharespace.formats.tensors import WeightsFile
from sharespace.subspace.adapter import Adapter, BaseModel

COMPONENT_OF: Mapping[str, str] = {
    "lora_unet": "unet",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",
}
ROLES: Mapping[str, str] = {
    "lora_down.weight": "A",
    "lora_up.weight": "B",
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "alpha": "alpha",
}
KEY = re.compile(r"(lora_unet|lora_te[123]?)_([^.]+)\.(.+)", re.DOTALL)


def read_kohya(file: WeightsFile, *, name: str, source: str) -> Adapter:
    """Read a kohya adapter.

    Args:
        file: the weights.
        name: of the adapter.
        source: what its provenance says.

    Raises:
        CorruptAdapterError: tensors that don't fit each other.
        UnsupportedAdapterError: something in it can't be kept exactly.
    """
    keys = {key: key for key in file.infos}
    contents = find_contents(
        file, keys, parse_key, lambda _, rank, alpha: alpha_scaling(rank, alpha)
    )
    components = sorted({split_component(module)[0] for module in contents.pairs})
    return build_adapter(
        file,
        contents,
        name=name,
        format="kohya",
        base=BaseModel(),
        config=header_entries(file) | {COMPONENTS: components},
        source=source,
    )


def _scaling(_: str, rank: int, alpha: float | None) -> float:
    return alpha_scaling(rank, alpha)


def is_kohya(key: str) -> bool:
    return KEY.fullmatch(key) is not None


def parse_key(key: str) -> tuple[str, str] | None:
    """(module, role) of a factor's or alpha's key; None for what belongs to no module.

    Raises:
        UnsupportedAdapterError: a module's tensor of another kind: it may change the update.
    """
    match = KEY.fullmatch(key)
    if match is None:
        return None
    path = unflatten(match[2])
    if match[3] not in ROLES or flatten(path) != match[2]:
        raise UnsupportedAdapterError(
            repr(key), f"it belongs to module {path!r}, and what it does is not known", "Drop it"
        )
    return f"{COMPONENT_OF[match[1]]}.{path}", ROLES[match[3]]
