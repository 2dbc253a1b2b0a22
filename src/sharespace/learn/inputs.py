"""What a module makes of its inputs in a few directions, for linear modules and convolutions."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from sharespace.subspace.adapter import LayerUpdate


def is_convolution(module: nn.Module) -> bool:
    """True for ``nn.Conv1d`` to ``nn.Conv3d``; Conv1D of transformers is linear."""
    return isinstance(module, nn.modules.conv._ConvNd)


def is_grouped(module: nn.Module) -> bool:
    """True for a convolution in groups: its outputs do not see the same inputs."""
    return is_convolution(module) and cast(Any, module).groups > 1


def seen(module: nn.Module, directions: Tensor, x: Tensor) -> Tensor:
    """The inputs in some directions: positions x r, for example batch x tokens x r.

    Args:
        module: linear, Conv1D, or a convolution without groups.
        directions: r x d, in the inputs' dtype and on their device.
        x: what the module is given.
    """
    if not is_convolution(module):
        return functional.linear(x, directions)
    conv = cast(Any, module)
    kernel = directions.reshape(-1, *conv.weight.shape[1:])
    hidden: Tensor = conv._conv_forward(x, kernel, None)
    return hidden.movedim(1, -1)


def as_output(module: nn.Module, values: Tensor) -> Tensor:
    """positions x n, features last, in the layout of the module's output."""
    return values.movedim(-1, 1) if is_convolution(module) else values


def update_output(module: nn.Module, update: LayerUpdate, x: Tensor) -> Tensor:
    """dW x in the layout of the module's output, without the n x d matrix where that is possible.

    Args:
        update: its factors in the inputs' dtype and on their device.
    """
    if is_grouped(module):
        conv = cast(Any, module)
        delta = (update.scaling * update.up @ update.down).reshape(conv.weight.shape)
        grouped: Tensor = conv._conv_forward(x, delta, None)
        return grouped
    hidden = update.scaling * seen(module, update.down, x)
    return as_output(module, functional.linear(hidden, update.up))
