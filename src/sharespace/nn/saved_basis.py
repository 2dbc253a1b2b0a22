"""Adapters that carry their bases in their own file (``ShareConfig.save_basis``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sharespace.errors import CorruptAdapterError, MismatchError
from sharespace.nn.layer import SubspaceLayer
from sharespace.nn.start import Values
from sharespace.shapes import ModuleShape
from sharespace.subspace.state import LayerSubspace

_NAMES = ("left_basis", "right_basis")


def is_basis(key: str) -> bool:
    """True for the key of a basis in a state dict."""
    return key.rpartition(".")[2] in _NAMES


def layout(model: nn.Module, adapter: str) -> dict[str, list[int]]:
    """Module -> [n, d, k_left, k_right, p, phi_left, phi_right, core] of an adapter.

    The last is 1 for the form "core" and 0 for "factors".
    """
    found: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, SubspaceLayer) and module.has(adapter):
            n, k_left = module.left_basis.shape
            d, k_right = module.right_basis.shape
            left = module.sharespace_left_coefficients[adapter]
            right = module.sharespace_right_coefficients[adapter]
            temporary = [left.shape[0] - k_left, right.shape[0] - k_right]
            core = int(adapter in module.sharespace_core)
            found[name] = [n, d, k_left, k_right, left.shape[1], *temporary, core]
    return found


def empty(sizes: Mapping[str, Any], key: str) -> tuple[LayerSubspace, Values]:
    """Room for one module's bases and values, which the file then fills.

    Bases are NaN until then: what is computed without them cannot pass for a result.

    Raises:
        CorruptAdapterError: the configuration has no sizes for the module.
    """
    if key not in sizes:
        raise CorruptAdapterError(f"module {key!r}", "adapter_config.json has no layout for it")
    n, d, k_left, k_right, p, phi_left, phi_right, core = (int(size) for size in sizes[key])
    layer = LayerSubspace(
        ModuleShape(n, d), torch.full((n, k_left), torch.nan), torch.full((d, k_right), torch.nan)
    )
    return layer, Values(
        torch.zeros(k_left + phi_left, p),
        torch.zeros(k_right + phi_right, p),
        torch.zeros(n, phi_left),
        torch.zeros(d, phi_right),
        torch.zeros(p, p) if core else None,
    )


def check(config: Any, state_dict: Mapping[str, Tensor]) -> None:
    """Refuse a file without bases where the configuration says that it has them.

    Raises:
        MismatchError: coefficients without bases.
    """
    if config.layout is not None and not any(is_basis(key) for key in state_dict):
        raise MismatchError(
            "adapter",
            "its configuration says that it carries its bases, but the file has none",
            "Save it again with save_basis=True, or load it with layout=None and share=PATH",
        )
