"""Models of a diffusers pipeline: which one a key belongs to, and its LoraConfig.

Module names of diffusers and kohya adapters start with the component ("unet.", "text_encoder.").
``lora_adapter_metadata`` in the header is one flat JSON object, "unet.r": 4 and so on; a model that
was saved alone has neither its keys nor these fields prefixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sharespace.formats.lora_config import METADATA, refuse_other_use
from sharespace.formats.weights_file import parse_object
from sharespace.subspace.naming import COMPONENTS as COMPONENTS
from sharespace.subspace.naming import PIPELINE_WORDS

LORA_METADATA = "lora_adapter_metadata"

UNET_ROOTS = frozenset(
    {
        "down_blocks",
        "mid_block",
        "up_blocks",
        "conv_in",
        "conv_out",
        "time_embedding",
        "add_embedding",
        "encoder_hid_proj",
    }
)


def default_component(keys: Iterable[str]) -> str:
    """The component of keys that name none: the one that is built like this."""
    roots = {key.split(".", 1)[0] for key in keys}
    return "unet" if roots & UNET_ROOTS else "transformer"


def with_component(path: str, default: str) -> str:
    """The path with its component in front."""
    return path if path.split(".", 1)[0] in PIPELINE_WORDS else f"{default}.{path}"


def split_component(module: str) -> tuple[str, str]:
    """(component, path inside it) of a module's name."""
    component, _, path = module.partition(".")
    return component, path


def components_of(modules: Iterable[str]) -> list[str]:
    """Names of the components that these modules belong to, sorted."""
    return sorted({split_component(module)[0] for module in modules})


def component_config(where: str, config: Mapping[str, Any], component: str) -> dict[str, Any]:
    """The LoraConfig fields of one component; empty where the adapter states none.

    Args:
        where: named in errors.
        config: ``Adapter.config``.
        component: for example ``"unet"``.

    Raises:
        CorruptAdapterError: the header's entry is not a JSON object.
    """
    text = config.get(METADATA, {}).get(LORA_METADATA)
    if text is None:
        return {}
    fields = parse_object(f"{where}, {LORA_METADATA}", text)
    start = component + "."
    own = {k.removeprefix(start): v for k, v in fields.items() if k.startswith(start)}
    # A model that was saved alone (not as part of a pipeline) has no prefix at its fields.
    return own or ({} if "r" not in fields else fields)


def refuse_unusable(where: str, config: Mapping[str, Any]) -> None:
    """Refuse to run an adapter, of one model or of a pipeline, that is more than a plain LoRA.

    Args:
        where: the task, named in errors.
        config: ``Adapter.config``.

    Raises:
        UnsupportedAdapterError: see ``refuse_other_use``.
        CorruptAdapterError: the header's entry is not a JSON object.
    """
    refuse_other_use(where, config)
    for component in config.get(COMPONENTS) or ():
        refuse_other_use(f"{where}, {component}", component_config(where, config, component))
