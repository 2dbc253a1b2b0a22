"""LoRA files of kohya's sd-scripts: ``lora_unet_<flat path>.lora_down.weight`` and ``.alpha``.

Source: kohya-ss/sd-scripts ``networks/lora.py``. Scaling is alpha / rank, 1 without an alpha.

kohya writes a module's path with every "." as "_". Going back needs to know which words have an
underscore of their own: the vocabulary below (diffusers' and the original names of UNets,
transformers and text encoders). From left to right, the longest vocabulary word that fits is one
part of the path; every other underscore becomes a dot. So a name that the vocabulary does not
cover is split at all its underscores: its module is still told from all others, and flattening
gives the file's key again whatever the vocabulary holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sharespace.errors import UnsupportedAdapterError
from sharespace.files import export_directory
from sharespace.formats.components import (
    COMPONENTS,
    components_of,
    default_component,
    split_component,
)
from sharespace.formats.original_names import diffusers_pairs
from sharespace.formats.pairs import alpha_scaling, build_adapter, sort_by_role
from sharespace.formats.peft import check_written, header_entries
from sharespace.formats.plain import ExportOptions, PlainLora, common_rank, padded
from sharespace.formats.weights_file import SafetensorsFile, WeightsFile, write_tensors
from sharespace.module_names import WRAPPER_PARTS
from sharespace.subspace.adapter import Adapter, BaseModel

_COMPONENT_OF: Mapping[str, str] = {
    "lora_unet": "unet",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",
}
_ROLES: Mapping[str, str] = {
    "lora_down.weight": "A",
    "lora_up.weight": "B",
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "alpha": "alpha",
}
_KEY = re.compile(r"(lora_unet|lora_te[123]?)_([^.]+)\.(.+)", re.DOTALL)
# Some converters write the underscore of a flattened path here, too.
_CONVERTERS = re.compile(r"_lora_(down|up)\.(?=weight$)")
# Wrappers' parts of a flattened path; the word for a wrapped whole model only at its start.
_WRAPPERS = re.compile(rf"^((?:module_)+)|(?<![^_])(?:{'|'.join(sorted(WRAPPER_PARTS))})_")
_UNET = "unet"
_TEXT = {"text_encoder": "lora_te", "text_encoder_2": "lora_te2"}

_BESIDE = ("bundle_emb.",)
"""Start of keys that a kohya file has beside its LoRA (textual inversion)."""

_HASHES = "sshs_"
"""Start of header entries that are hashes of the original's weights."""

_EXPORT_ELSEWHERE = "Export it as diffusers"

_VOCABULARY = """
down_blocks mid_block up_blocks transformer_blocks single_transformer_blocks input_blocks
middle_block output_blocks double_blocks single_blocks joint_blocks context_block x_block
time_embedding time_embed time_emb_proj add_embedding label_emb class_embedding emb_layers
time_proj linear_1 linear_2 time_text_embed timestep_embedder guidance_embedder text_embedder
context_embedder x_embedder y_embedder t_embedder pos_embed
conv_in conv_out conv_shortcut conv_norm_out in_layers out_layers skip_connection
proj_in proj_out proj_mlp to_q to_k to_v to_out to_qkv to_add_out to_added_qkv
add_q_proj add_k_proj add_v_proj ff_context norm1_context norm_out norm_q norm_k
norm_added_q norm_added_k adaLN_modulation adaln_single
img_attn txt_attn img_mlp txt_mlp img_mod txt_mod img_in txt_in time_in vector_in guidance_in
in_layer out_layer final_layer
text_model text_projection self_attn cross_attn encoder_attn encoder_decoder_attn
q_proj k_proj v_proj o_proj out_proj in_proj qkv_proj gate_proj up_proj down_proj
layer_norm layer_norm1 layer_norm2 final_layer_norm input_layernorm post_attention_layernorm
token_embedding position_embedding embed_tokens embed_positions c_fc c_proj c_attn
wi_0 wi_1 encoder_hid_proj visual_projection lm_head
"""

# A word is a name of the vocabulary, split at its underscores.
_WORDS = {tuple(word.split("_")) for word in _VOCABULARY.split()}
_LONGEST = max(map(len, _WORDS))


def is_kohya(file: WeightsFile) -> bool:
    """Whether kohya's sd-scripts, or a tool that writes as they do, wrote a file."""
    return any(_KEY.fullmatch(key) for key in file.infos)


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
    sorted_keys = sort_by_role(
        file, keys, _parse_key, lambda _, rank, alpha: alpha_scaling(rank, alpha)
    )
    pairs = diffusers_pairs(file, sorted_keys.pairs)
    sorted_keys = replace(sorted_keys, pairs=pairs)
    components = components_of(pairs)
    return build_adapter(
        file,
        sorted_keys,
        name=name,
        format="kohya",
        base=BaseModel(),
        config=header_entries(file) | {COMPONENTS: components},
        source=source,
    )


def _parse_key(key: str) -> tuple[str, str] | None:
    """(module, role) of a factor's or alpha's key; None for what belongs to no module.

    Raises:
        UnsupportedAdapterError: a module's tensor of another kind: it may change the update.
    """
    match = _KEY.fullmatch(_CONVERTERS.sub(r".lora_\1.", key))
    if match is None:
        return None
    flat = _WRAPPERS.sub("", match[2])
    if match[1] == "lora_unet":
        flat = flat.removeprefix("unet_")  # of converters that name the component once more
    path = unflatten(flat)
    if match[3] not in _ROLES or flatten(path) != flat:
        raise UnsupportedAdapterError(
            repr(key), f"it belongs to module {path!r}, and what it does is not known", "Drop it"
        )
    return f"{_COMPONENT_OF[match[1]]}.{path}", _ROLES[match[3]]


def unflatten(flat: str) -> str:
    """The path of a flattened name; ``flatten(unflatten(x)) == x`` for every x without a dot.

    A word that is not in the vocabulary is split at each of its underscores. That is harmless: the
    path is only another name of the module, and an export flattens it to the same key again.
    """
    pieces = flat.split("_")
    path = []
    place = 0
    while place < len(pieces):
        size = _word_at(pieces, place)
        path.append("_".join(pieces[place : place + size]))
        place += size
    return ".".join(path)


def _word_at(pieces: list[str], place: int) -> int:
    """How many pieces the longest vocabulary word at this place has; 1 where none fits."""
    for size in range(_LONGEST, 1, -1):
        if tuple(pieces[place : place + size]) in _WORDS:
            return size
    return 1


def flatten(path: str) -> str:
    """kohya's name of a module's path."""
    return path.replace(".", "_")


def write_kohya(path: Path, plain: PlainLora, options: ExportOptions) -> list[Path]:
    """Write a task as one file for web UIs, ComfyUI and kohya's sd-scripts.

    Keys are ``lora_unet_<flat path>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha`` (= rank,
    so that alpha / rank is 1); ``lora_te_`` for a text encoder, ``lora_te1_`` and ``lora_te2_``
    where two are adapted.

    Args:
        path: the directory; made whole or not at all. The file in it has its name.
        plain: the task; one that came from no pipeline has to be a UNet's.
        options: rank, dtype and whether to overwrite.

    Returns:
        The file.

    Raises:
        UnsupportedAdapterError: a module or tensor that has no name in this form.
        OptionError: nothing to write, the rank is too small, or the directory is in use.
        CorruptAdapterError: a factor is not finite, or what was written reads back otherwise.
    """
    rank = common_rank(plain.updates, options.rank)
    names = _kohya_names(plain)
    tensors = _kept(plain) | _factors(plain, names, rank, options.dtype)
    file = f"{path.name}.safetensors"
    with export_directory(path, overwrite=options.overwrite) as aside:
        write_tensors(aside / file, tensors, _header(plain, rank))
        _check(aside / file, tensors, set(names.values()))
    return [path / file]


def _kohya_names(plain: PlainLora) -> dict[str, str]:
    """Module of the task -> module as a reader of the file finds it.

    Raises:
        UnsupportedAdapterError: a component or a path that has no name in this form.
    """
    names: dict[str, str] = {}
    pipeline = COMPONENTS in plain.config
    if not pipeline and default_component(plain.updates) != _UNET:
        why = "its modules are no UNet's and no pipeline's, so they have no name in kohya's form"
        raise UnsupportedAdapterError("task", why, "Export it as peft")
    for module in plain.updates:
        component, path = split_component(module) if pipeline else (_UNET, module)
        if component in _TEXT and path.startswith("encoder."):
            path = f"text_model.{path}"  # transformers 5 has taken this word out
        if component not in (_UNET, *_TEXT):
            why = f"component {component!r} has no name in kohya's form here"
            raise UnsupportedAdapterError(module, why, _EXPORT_ELSEWHERE)
        if unflatten(flatten(path)) != path:
            why = f"kohya's {flatten(path)!r} is read as {unflatten(flatten(path))!r}"
            raise UnsupportedAdapterError(module, why, _EXPORT_ELSEWHERE)
        names[module] = f"{component}.{path}"
    return names


def _factors(
    plain: PlainLora, names: Mapping[str, str], rank: int, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    two = any(name.startswith("text_encoder_2.") for name in names.values())
    tensors: dict[str, Tensor] = {}
    for module, update in plain.updates.items():
        component, path = split_component(names[module])
        start = "lora_unet" if component == _UNET else _TEXT[component]
        start = "lora_te1" if two and start == "lora_te" else start
        key = f"{start}_{flatten(path)}"
        down, up = padded(module, update, rank, dtype, plain.shapes.get(module))
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up
        tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    return tensors


def _kept(plain: PlainLora) -> dict[str, Tensor]:
    for key in plain.kept:
        if not key.startswith(_BESIDE):
            why = "beside the factors, and it has no name in kohya's form"
            raise UnsupportedAdapterError(repr(key), why, _EXPORT_ELSEWHERE)
    return {key: tensor.detach().cpu().clone() for key, tensor in plain.kept.items()}


def _header(plain: PlainLora, rank: int) -> dict[str, str]:
    """The original's entries, with the rank that the file has now."""
    entries = {k: v for k, v in plain.header.items() if not k.startswith(_HASHES)}
    size = {"ss_network_dim": str(rank), "ss_network_alpha": str(float(rank))}
    return entries | {"ss_network_module": "networks.lora"} | size


def _check(path: Path, tensors: Mapping[str, Tensor], modules: set[str]) -> None:
    file = SafetensorsFile.open(path)
    check_written(file, tensors, read_kohya(file, name="written", source=""), modules)
