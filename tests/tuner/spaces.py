"""Share models of random orthonormal bases for any small model, and models to adapt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sharespace.errors import MismatchError
from sharespace.subspace.adapter import BaseModel, ModuleShape
from sharespace.subspace.coefficients import Factors
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import BuildSettings, Ledger, ShareModel, Task
from sharespace.tuner import ShareConfig, publish
from sharespace.tuner.subspace_layer import sides

K = 4
ALIVE: list[ShareModel] = []
"""``publish`` keeps no model alive."""


def space(model: nn.Module, *, k: int = K, seed: int = 0, tasks: Sequence[str] = ()) -> ShareModel:
    """A Share model for every linear and convolution module, with random tasks of p = 2."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, module in model.named_modules():
        found = _sides(module)
        if found is not None:
            layers[name] = _subspace(module, found, k, generator)
    members = {name: _task(name, layers, generator) for name in tasks}
    return ShareModel(BaseModel(), BuildSettings(), torch.float32, layers, members)


def published(model: nn.Module, **options: Any) -> str:
    """The name of a Share model of that model, for ``ShareConfig(share=...)``."""
    found = space(model, **options)
    ALIVE.append(found)
    return publish(found)


def published_together(*models: nn.Module) -> str:
    """The same for several models whose modules have different names."""
    first, *others = [space(model) for model in models]
    for other in others:
        first = first.with_layers({**first.layers, **other.layers})
    ALIVE.append(first)
    return publish(first)


def adapted(model: nn.Module, **options: Any) -> Any:
    """A ``PeftModel`` whose update is not zero."""
    options.setdefault("init_weights", False)
    share = options.pop("share", None) or published(model)
    return get_peft_model(model, ShareConfig(share=share, **options)).eval()


def update_of(layer: Any, name: str = "default") -> Tensor:
    """What is learned of dW, float64, n x d, by the definition: [beta, beta'] [E; e] ([alpha,
    alpha'] [F; f])^T; the updates of known tasks that it starts from are left out."""
    sides = []
    for which in ("left", "right"):
        basis = getattr(layer, f"{which}_basis").double()
        new = getattr(layer, f"sharespace_{which}_temporary")
        if name in new:
            basis = torch.cat([basis, new[name].detach().double()], dim=1)
        coefficients = getattr(layer, f"sharespace_{which}_coefficients")[name]
        if which == "left" and name in layer.sharespace_core:
            coefficients = coefficients @ layer.sharespace_core[name]
        sides.append(basis @ coefficients.detach().double())
    dense: Tensor = sides[0] @ sides[1].mT
    return dense


def randomise(model: nn.Module, seed: int = 3) -> None:
    """Every trainable number random, heads and temporary directions included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                draw = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.3 * draw.to(parameter.dtype))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Name -> gradient of everything that has one."""
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


class Mlp(nn.Module):
    """Two linear layers that can be adapted, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 14), nn.Linear(14, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return found


def mlp() -> Any:
    """The same weights every time."""
    return seeded(Mlp)


def seeded(make: Callable[[], nn.Module]) -> Any:
    """A model with the same weights every time, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def points(rows: int = 6, columns: int = 10) -> Tensor:
    """The same inputs every time."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(7))


def _sides(module: nn.Module) -> tuple[int, int] | None:
    if list(module.children()) or isinstance(module, BaseTunerLayer):
        return None
    try:
        return sides(module)
    except MismatchError:
        return None


def _subspace(
    module: nn.Module, found: tuple[int, int], k: int, generator: torch.Generator
) -> LayerSubspace:
    left, right = (
        torch.linalg.qr(torch.randn(side, min(k, side), generator=generator))[0] for side in found
    )
    kernel = getattr(module, "kernel_size", None)
    if kernel is None:
        return LayerSubspace(ModuleShape(*found), left, right)
    return LayerSubspace(ModuleShape(*found, kind="conv", kernel=tuple(kernel)), left, right)


def _task(name: str, layers: dict[str, LayerSubspace], generator: torch.Generator) -> Task:
    coefficients = {
        module: Factors(*(torch.randn(k, 2, generator=generator) for k in layer.k))
        for module, layer in layers.items()
    }
    norms = [float((c.left @ c.right.mT).norm()) for c in coefficients.values()]
    ledger = Ledger(
        tuple(coefficients),
        torch.tensor(norms, dtype=torch.float64),
        torch.zeros(len(norms), 0, dtype=torch.float64),
        (),
    )
    return Task(name, coefficients, ledger)
