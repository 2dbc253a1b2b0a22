"""What a module of the base model is given and what an adapter makes of it, as second moments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sharespace.errors import OptionError
from sharespace.learn.inputs import seen, update_output
from sharespace.subspace.adapter import LayerUpdate
from sharespace.subspace.state import LayerSubspace


@dataclass(eq=False)
class Moments:
    """Sums over all inputs x of one module, float64, in an orthonormal frame Q of the left basis.

    With z = alpha^T x, y = Q^T dW x and D = R C, where beta = Q R (R = I but for the rounding of a
    basis stored in 16 bits), the outputs' error is sum |D z - y|^2 + what Q does not see.
    """

    frame: Tensor
    """R, k_left x k_left."""
    zz: Tensor
    """sum z z^T, k_right x k_right."""
    yz: Tensor
    """sum y z^T, k_left x k_right."""
    energy: float = 0.0
    """sum |dW x|^2."""
    count: int = 0
    """Inputs: rows, or a convolution's positions."""

    def squared_error(self, core: Tensor) -> float:
        """sum_x |beta C alpha^T x - dW x|^2 of a core C, float64 k_left x k_right."""
        d = self.frame @ core
        return max(self.energy + float((d.mT @ d * self.zz).sum() - 2 * (d * self.yz).sum()), 0.0)


@torch.no_grad()
def collect_moments(
    model: nn.Module,
    layers: Mapping[str, LayerSubspace],
    updates: Mapping[str, LayerUpdate],
    inputs: Iterable[Mapping[str, Tensor]],
) -> dict[str, Moments]:
    """Run the base model with an adapter's updates, and look at what its modules are given.

    The updates are added to the modules' outputs: weights are neither changed nor copied, so that
    quantised modules do, too.

    Args:
        layers: modules to look at.
        updates: the adapter, all modules.
        inputs: batches of the model's arguments. Where one is ``attention_mask``, padding counts
            for nothing.

    Raises:
        OptionError: there are no inputs, or a module meets NaN or infinity.
    """
    device, training = next(model.parameters()).device, model.training
    counters = {m: _Counter(layer, updates[m]) for m, layer in layers.items()}
    with _hooked(model, updates, counters):
        for batch in inputs:
            for counter in counters.values():
                counter.mask = batch.get("attention_mask")
            model.eval()(**{k: v.to(device) for k, v in batch.items()})
    model.train(training)
    return _checked({m: counter.moments for m, counter in counters.items()})


class _Counter:
    """Adds up one module's moments."""

    def __init__(self, layer: LayerSubspace, update: LayerUpdate) -> None:
        self.left, frame = torch.linalg.qr(layer.left_basis.double())
        self.right = layer.right_basis.double()
        self.up, self.down = update.scaling * update.up.double(), update.down.double()
        self.mask: Tensor | None = None
        k_left, k_right = layer.k
        self.moments = Moments(
            frame,
            torch.zeros(k_right, k_right, dtype=torch.float64),
            torch.zeros(k_left, k_right, dtype=torch.float64),
        )

    def add(self, module: nn.Module, x: Tensor) -> None:
        """Count the inputs x of the module."""
        directions = torch.cat([self.right.mT, self.down])
        rows = self._rows(seen(module, directions.to(x), x)).double().cpu()
        k = self.right.shape[1]
        z, hidden = rows[:, :k], rows[:, k:]
        moments = self.moments
        moments.zz += z.mT @ z
        moments.yz += (self.left.mT @ self.up) @ (hidden.mT @ z)
        moments.energy += float((hidden.mT @ hidden * (self.up.mT @ self.up)).sum())
        moments.count += len(rows)

    def _rows(self, values: Tensor) -> Tensor:
        """positions x r as rows x r, without padding."""
        if self.mask is not None and self.mask.shape == values.shape[:-1]:
            return values[self.mask.to(values.device).bool()]
        return values.reshape(-1, values.shape[-1])


@contextmanager
def _hooked(
    model: nn.Module, updates: Mapping[str, LayerUpdate], counters: Mapping[str, _Counter]
) -> Iterator[None]:
    handles = [
        model.get_submodule(m).register_forward_hook(_hook(update, counters.get(m)))
        for m, update in updates.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(update: LayerUpdate, counter: _Counter | None) -> Any:
    """A hook that counts a module's inputs and adds the update to its output."""

    def run(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        x = arguments[0]
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if counter is not None:
            counter.add(module, x)
        fitting = replace(update, up=update.up.to(x), down=update.down.to(x))
        return output + update_output(module, fitting, x).to(output.dtype)

    return run


def _checked(moments: dict[str, Moments]) -> dict[str, Moments]:
    """Those of modules that were given something.

    Raises:
        OptionError: see ``collect_moments``.
    """
    used = {m: found for m, found in moments.items() if found.count}
    if not used:
        raise OptionError("inputs", "no module of the task was given any", "Give some batches")
    for module, found in used.items():
        if not bool(torch.isfinite(found.zz).all() and torch.isfinite(found.yz).all()):
            raise OptionError("inputs", f"module {module!r} meets NaN or infinity", "Check them")
    return used
