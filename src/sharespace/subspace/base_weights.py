"""The base weights of a model that is at hand, sampled and compared with those of a Share model.

Nothing of PEFT or transformers is imported: PEFT's layers are told by what they offer.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sharespace.subspace.base_digest import check_same_base, joined_samples, sampled_rows


class BaseWeightsWarning(UserWarning):
    """Base weights could not be compared with those that a Share model's tasks belong to."""


def base_samples(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The samples of those modules whose base weights are at hand.

    Args:
        modules: adapted module -> the module, or PEFT's layer around it.
    """
    samples = {name: _sample(module) for name, module in modules.items()}
    return {name: sample for name, sample in samples.items() if sample is not None}


def _sample(module: nn.Module) -> Tensor | None:
    """A module's sample; None where its weight is quantised, offloaded, sharded or changed."""
    # Below PEFT's layers, of which a merged one has changed the weight.
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        if getattr(module, "merged_adapters", None):
            return None
        module = inner
    weight = getattr(module, "weight", None)
    # Quantised weights of torchao and sharded ones of FSDP are tensors of classes of their own.
    if not isinstance(weight, Tensor) or type(weight.data) is not Tensor:
        return None
    if weight.is_meta or weight.ndim < 2 or weight.dtype not in _COMPARABLE:
        return None
    # Conv1D of transformers (GPT-2) holds d x n.
    matrix = weight.mT if type(module).__name__ == "Conv1D" else weight.flatten(1)
    sample = sampled_rows(matrix)
    return sample if torch.isfinite(sample).all() else None


_COMPARABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def checked_base(
    what: str, known: Mapping[str, Tensor], modules: Mapping[str, nn.Module]
) -> Mapping[str, Tensor]:
    """The samples of a model's base weights, which must be those of a Share model's base.

    What cannot be compared is said (``BaseWeightsWarning``), not refused.

    Args:
        what: the model, for errors.
        known: the Share model's samples; may be empty.
        modules: adapted module -> the module of the model.

    Returns:
        Adapted module -> sample, of the modules whose weights are at hand.

    Raises:
        MismatchError: a module's weight is that of another base model.
    """
    met = base_samples(modules)
    check_same_base(what, known, met)
    unknown = [name for name in modules if name not in met]
    if unknown:
        warnings.warn(
            f"{what}: whether its base weights are the Share model's cannot be checked in "
            f"{len(unknown)} of {len(modules)} modules, {unknown[0]!r} among them: they are "
            "quantised, merged, sharded or offloaded. Make sure that it is the same base model",
            BaseWeightsWarning,
            stacklevel=3,
        )
    return met


def with_samples(
    what: str, known: Mapping[str, Tensor], met: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """The Share model's samples, and those of modules that it has none of.

    Raises:
        MismatchError: the weights are those of another base model.
    """
    return joined_samples(known, [(what, met)])
