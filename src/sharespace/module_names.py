"""Paths of modules as the bare model names them, whatever wrapped it when they were written down.

A wrapper puts itself between a module and its parent, so a part is added to the path of all that is
below it: to the front of every path where the whole model is wrapped, into the middle where single
blocks are (regional compilation, FSDP, activation checkpointing).
"""

from __future__ import annotations

WRAPPER_PARTS = frozenset(
    {
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",  # FSDP
        "_checkpoint_wrapped_module",  # activation checkpointing and offloading of torch
        "_fpw_module",  # FSDP of torch 1.11 and of fairscale
        "_dmp_wrapped_module",  # torchrec
        "_forward_module",  # Lightning Fabric
    }
)
"""Parts of a path that only wrappers have, wherever they are."""

# DDP, DataParallel, DeepSpeed and Megatron wrap whole models, so their word is one of the first.
# It is left alone further down: LeViT's residual blocks have a child of that name.
_WHOLE_MODEL = "module"
# What may stand before the model that was wrapped: PEFT's own two wrappers.
_PEFT_PARTS = ("base_model", "model")


def unwrapped(path: str) -> str:
    """The path without the parts that wrappers put into it.

    Args:
        path: of a module, or a tensor's key in a file that starts with such a path; with or
            without PEFT's ``base_model.model.`` in front.

    Returns:
        For example ``model.layers.0.mlp`` for ``module._orig_mod.model.layers.0.mlp``. A path that
        is nothing but a wrapper gives an empty text.
    """
    parts = [part for part in path.split(".") if part not in WRAPPER_PARTS]
    front: list[str] = []
    for part in _PEFT_PARTS:
        _drop_whole_model(parts)
        if parts[:1] == [part]:
            front.append(parts.pop(0))
        else:
            break
    if len(front) == len(_PEFT_PARTS):
        _drop_whole_model(parts)
    return ".".join([*front, *parts])


def _drop_whole_model(parts: list[str]) -> None:
    while parts[:1] == [_WHOLE_MODEL]:
        del parts[0]
