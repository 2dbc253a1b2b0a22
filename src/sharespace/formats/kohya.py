"""LoRA files of kohya's sd-scripts: ``lora_unet_<flat path>.lora_down.weight`` and ``.alpha``.

Source: kohya-ss/sd-scripts ``networks/lora.py``. Scaling is alpha / rank, 1 without an alpha.

kohya writes a module's path with every "." as "_". Going back needs to know which words have an
underscore of their own: the vocabulary below (diffusers' and the original names of UNets,
transformers and text encoders). From left to right, the longest vocabulary word that fits is one
part of the path; every other underscore becomes a dot. So a name that the vocabulary does not
cover is split at all its underscores: its module is still told from all others, and flattening
gives the file's key again whatever the vocabulary holds.

sd-scripts train SDXL, Flux and SD3 on their makers' code (Stability AI, Black Forest Labs), so
those files have its names. ``diffusers_pairs`` maps them as diffusers does (diffusers 0.42,
``loaders/lora_conversion_utils.py``: ``_maybe_map_sgm_blocks_to_diffusers``,
``_convert_unet_lora_key``, ``_convert_kohya_flux_lora_to_diffusers``; SD3:
``loaders/single_file_utils.py``). A layer that diffusers has as several (``qkv``) gets one update
for each: the same A, and its rows of B.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.files import export_directory
from sharespace.formats.companions import write_files_of
from sharespace.formats.lora_config import (
    COMPONENTS,
    components_of,
    default_component,
    split_component,
)
from sharespace.formats.pairs import (
    FactorPair,
    RowRange,
    alpha_scaling,
    build_adapter,
    check_factor,
    sort_by_role,
)
from sharespace.formats.peft import check_written, header_entries
from sharespace.formats.plain import ExportOptions, PlainLora, check_updates, common_rank, padded
from sharespace.formats.weights_file import SafetensorsFile, WeightsFile, write_tensors
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate
from sharespace.subspace.naming import WRAPPER_PARTS

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
        _check(aside / file, tensors, {names[m]: update for m, update in plain.updates.items()})
        write_files_of(aside, plain.files)
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


def _check(path: Path, tensors: Mapping[str, Tensor], updates: Mapping[str, LayerUpdate]) -> None:
    file = SafetensorsFile.open(path)
    adapter = read_kohya(file, name="written", source="")
    check_written(file, tensors, adapter, set(updates))
    check_updates({module: adapter.layer(module) for module in updates}, updates)


_UNET_WORDS = {
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
_RESNET_WORDS = {
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
# Resnets of a block and the sampler behind them, in the UNets of all Stable Diffusion versions.
_LAYERS = 2 + 1
_BLOCK = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.([012])\.(.+)")
_MIDDLE_BLOCK = re.compile(r"middle_block\.([012])\.(.+)")

_FLUX = re.compile(r"(double_blocks|single_blocks)\.(\d+)\.(.+)")
_SD3 = re.compile(r"joint_blocks\.(\d+)\.(.+)")
ORIGINAL_ROOTS = frozenset(
    {
        *("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"),
        *("double_blocks", "single_blocks", "joint_blocks"),
    }
)
"""First words of paths in original models; no model of diffusers has them."""

Split = Callable[[int, int], "list[tuple[RowRange, ...]]"]
"""(n, d) of a module -> which rows each of diffusers' modules has, in their order."""


def _thirds(n: int, _: int) -> list[tuple[RowRange, ...]]:
    return _consecutive([n // 3] * 3) if n % 3 == 0 else []


def _attention_and_mlp(n: int, d: int) -> list[tuple[RowRange, ...]]:
    """Of Flux' ``linear1``: q, k and v as wide as the input, then an MLP of four times that."""
    return _consecutive([d, d, d, 4 * d]) if n == 7 * d else []


def _swapped(n: int, _: int) -> list[tuple[RowRange, ...]]:
    """Shift and scale of a modulation are the other way round in diffusers."""
    return [((n // 2, n), (0, n // 2))] if n % 2 == 0 else []


def _consecutive(sizes: list[int]) -> list[tuple[RowRange, ...]]:
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return [(both,) for both in pairwise(ends)]


def _whole(*_: int) -> list[tuple[RowRange, ...]]:
    return [()]


Names = Mapping[str, "tuple[Split, tuple[str, ...]]"]
TransformerNames = Callable[[str], "tuple[str, Split, tuple[str, ...]] | None"]
"""Path in the original -> start of diffusers' paths, the rows of each, and their ends."""

_DOUBLE: Names = {
    "img_attn.proj": (_whole, ("attn.to_out.0",)),
    "img_attn.qkv": (_thirds, ("attn.to_q", "attn.to_k", "attn.to_v")),
    "img_mlp.0": (_whole, ("ff.net.0.proj",)),
    "img_mlp.2": (_whole, ("ff.net.2",)),
    "img_mod.lin": (_whole, ("norm1.linear",)),
    "txt_attn.proj": (_whole, ("attn.to_add_out",)),
    "txt_attn.qkv": (_thirds, ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    "txt_mlp.0": (_whole, ("ff_context.net.0.proj",)),
    "txt_mlp.2": (_whole, ("ff_context.net.2",)),
    "txt_mod.lin": (_whole, ("norm1_context.linear",)),
}
_SINGLE: Names = {
    "linear1": (_attention_and_mlp, ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
    "linear2": (_whole, ("proj_out",)),
    "modulation.lin": (_whole, ("norm.linear",)),
}
_FLUX_REST: Names = {
    "guidance_in.in_layer": (_whole, ("time_text_embed.guidance_embedder.linear_1",)),
    "guidance_in.out_layer": (_whole, ("time_text_embed.guidance_embedder.linear_2",)),
    "img_in": (_whole, ("x_embedder",)),
    "txt_in": (_whole, ("context_embedder",)),
    "time_in.in_layer": (_whole, ("time_text_embed.timestep_embedder.linear_1",)),
    "time_in.out_layer": (_whole, ("time_text_embed.timestep_embedder.linear_2",)),
    "vector_in.in_layer": (_whole, ("time_text_embed.text_embedder.linear_1",)),
    "vector_in.out_layer": (_whole, ("time_text_embed.text_embedder.linear_2",)),
    "final_layer.adaLN_modulation.1": (_swapped, ("norm_out.linear",)),
    "final_layer.linear": (_whole, ("proj_out",)),
}
_JOINT: Names = {
    "x_block.attn.qkv": (_thirds, ("attn.to_q", "attn.to_k", "attn.to_v")),
    "x_block.attn.proj": (_whole, ("attn.to_out.0",)),
    "x_block.attn2.qkv": (_thirds, ("attn2.to_q", "attn2.to_k", "attn2.to_v")),
    "x_block.attn2.proj": (_whole, ("attn2.to_out.0",)),
    "x_block.mlp.fc1": (_whole, ("ff.net.0.proj",)),
    "x_block.mlp.fc2": (_whole, ("ff.net.2",)),
    "x_block.adaLN_modulation.1": (_whole, ("norm1.linear",)),
    "context_block.attn.qkv": (_thirds, ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    "context_block.attn.proj": (_whole, ("attn.to_add_out",)),
    "context_block.mlp.fc1": (_whole, ("ff_context.net.0.proj",)),
    "context_block.mlp.fc2": (_whole, ("ff_context.net.2",)),
    # The last block's has two parts instead of six, and only that one is swapped.
    "context_block.adaLN_modulation.1": (
        lambda n, d: _swapped(n, d) if n == 2 * d else [()],
        ("norm1_context.linear",),
    ),
}
_SD3_REST: Names = {
    "x_embedder.proj": (_whole, ("pos_embed.proj",)),
    "context_embedder": (_whole, ("context_embedder",)),
    "t_embedder.mlp.0": (_whole, ("time_text_embed.timestep_embedder.linear_1",)),
    "t_embedder.mlp.2": (_whole, ("time_text_embed.timestep_embedder.linear_2",)),
    "y_embedder.mlp.0": (_whole, ("time_text_embed.text_embedder.linear_1",)),
    "y_embedder.mlp.2": (_whole, ("time_text_embed.text_embedder.linear_2",)),
    "final_layer.adaLN_modulation.1": (_swapped, ("norm_out.linear",)),
    "final_layer.linear": (_whole, ("proj_out",)),
}


def unet_name(path: str) -> str:
    """diffusers' name of a module of Stability AI's UNet; other paths stay as they are.

    Args:
        path: for example ``input_blocks.4.1.transformer_blocks.0.attn1.to_q``.
    """
    if path in _UNET_WORDS:
        return _UNET_WORDS[path]
    if match := _MIDDLE_BLOCK.fullmatch(path):
        return f"mid_block.{_MIDDLE[match[1]]}.{_RESNET_WORDS.get(match[2], match[2])}"
    match = _BLOCK.fullmatch(path)
    if match is None:
        return path
    side, number, inner, rest = match[1], int(match[2]), match[3], match[4]
    block, layer = divmod(number - 1 if side == "input_blocks" else number, _LAYERS)
    blocks = "down_blocks" if side == "input_blocks" else "up_blocks"
    if rest == "op":
        return f"{blocks}.{block}.downsamplers.0.conv"
    # Behind a resnet alone, as in SD 1.5, or behind its attention.
    if rest == "conv" and inner != "0":
        return f"{blocks}.{block}.upsamplers.0.conv"
    kind = "resnets" if inner == "0" else "attentions"
    return f"{blocks}.{block}.{kind}.{layer}.{_RESNET_WORDS.get(rest, rest)}"


def diffusers_pairs(file: WeightsFile, pairs: Mapping[str, FactorPair]) -> dict[str, FactorPair]:
    """The factor pairs under diffusers' names for their modules.

    Args:
        file: the weights.
        pairs: by module, the names of ``unet.`` as kohya's file has them.

    Raises:
        UnsupportedAdapterError: a module of Flux or SD3 that diffusers has no name for.
        CorruptAdapterError: two modules are the same one.
    """
    paths = [module.partition(".")[2] for module in pairs if module.startswith("unet.")]
    names = _transformer_names(paths)
    result: dict[str, FactorPair] = {}
    for module, pair in pairs.items():
        component, _, path = module.partition(".")
        if component != "unet":
            renamed = {module: pair}
        elif names is None:
            renamed = {f"unet.{unet_name(path)}": pair}
        else:
            renamed = _transformer_pairs(file, path, pair, names)
        for name, one in renamed.items():
            if name in result:
                why = f"{result[name].down!r} and {one.down!r} are both of module {name!r}"
                raise CorruptAdapterError(str(file.path), why, "Drop one")
            result[name] = one
    return result


def _transformer_names(paths: list[str]) -> TransformerNames | None:
    """How a transformer's modules are called in diffusers; None: the paths are no transformer's."""
    if any(_FLUX.fullmatch(path) for path in paths):
        return _flux_names
    if any(_SD3.fullmatch(path) for path in paths):
        return _sd3_names
    return None


def _flux_names(path: str) -> tuple[str, Split, tuple[str, ...]] | None:
    if match := _FLUX.fullmatch(path):
        double = match[1] == "double_blocks"
        known = (_DOUBLE if double else _SINGLE).get(match[3])
        start = f"{'' if double else 'single_'}transformer_blocks.{match[2]}."
        return (start, *known) if known else None
    known = _FLUX_REST.get(path)
    return ("", *known) if known else None


def _sd3_names(path: str) -> tuple[str, Split, tuple[str, ...]] | None:
    if match := _SD3.fullmatch(path):
        known = _JOINT.get(match[2])
        return (f"transformer_blocks.{match[1]}.", *known) if known else None
    known = _SD3_REST.get(path)
    return ("", *known) if known else None


def _transformer_pairs(
    file: WeightsFile,
    path: str,
    pair: FactorPair,
    names: TransformerNames,
) -> dict[str, FactorPair]:
    for key in (pair.down, pair.up):
        check_factor(file, key)
    known = names(path)
    n, d = file.infos[pair.up].shape[0], file.infos[pair.down].shape[-1]
    rows = known[1](n, d) if known else []
    if known is None or len(rows) != len(known[2]):
        raise UnsupportedAdapterError(
            str(file.path),
            f"module {path!r} ({n}x{d}) has no name in diffusers' models of Flux and SD3",
            "Convert it with the trainer's own script, and read the result",
        )
    start, _, modules = known
    return {
        f"transformer.{start}{module}": replace(pair, rows=part)
        for module, part in zip(modules, rows, strict=True)
    }
