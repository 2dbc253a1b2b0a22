"""Modules of original models (Stability AI, Black Forest Labs) under diffusers' names.

kohya's sd-scripts train SDXL, Flux and SD3 on the original code, so their files have its names.
They are mapped as diffusers maps them (diffusers 0.42, ``loaders/lora_conversion_utils.py``:
``_maybe_map_sgm_blocks_to_diffusers``, ``_convert_unet_lora_key``,
``_convert_kohya_flux_lora_to_diffusers``; SD3: ``loaders/single_file_utils.py``). A layer that
diffusers has as several (``qkv``) gets one update for each: the same A, and its rows of B.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.formats.pairs import FactorPair, RowRange
from sharespace.formats.weights_file import WeightsFile

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
