"""Fit a task's coefficients to its original adapter on unlabelled inputs.

Where only an adapter came, projection keeps what is nearest in weights. With inputs at hand one can
keep what is nearest in outputs: per module, over the inputs x that it sees,

    C = argmin sum_x |beta C alpha^T x - dW x|^2 + ridge |C - C_projected|^2,   rank C <= p,

which needs only z = alpha^T x (k_right) and y = beta^T dW x (k_left): the second moments of z and
of (y, z), never an n x d or d x d matrix. The rank is cut in the metric of the outputs
(reduced-rank regression, Izenman 1975).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sharespace.errors import MismatchError
from sharespace.extras import require
from sharespace.share import Share
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.project import dense_cores
from sharespace.subspace.state import Coefficients, Factors, LayerSubspace, Private


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A Share model in which one task was fitted to its original adapter's outputs."""

    share: Share
    before: float
    """Relative error of the updates' outputs, sum_x |dW^ x - dW x|^2 / sum_x |dW x|^2, its root,
    over all modules, with the coefficients as they were."""
    after: float
    """The same after the fit, on the same inputs."""


@dataclass(eq=False)
class Moments:
    """Sums over all inputs of one module, float64."""

    zz: Tensor
    """k_right x k_right."""
    yz: Tensor
    """k_left x k_right."""
    energy: float = 0.0
    """sum |dW x|^2."""
    count: int = field(default=0)


def calibrate(
    model: nn.Module,
    share: Share,
    adapter: Adapter,
    inputs: Iterable[Mapping[str, Tensor]],
    *,
    ridge: float = 1e-3,
) -> Calibrated:
    """Fit the coefficients of a task that came as an adapter; no labels are needed.

    Args:
        model: the base model; linear modules and convolutions of kernel 1 are fitted.
        share: knows the task of the adapter's name.
        adapter: the original.
        inputs: batches of the model's arguments.
        ridge: weight of the coefficients as they are, relative to the inputs' mean energy per
            direction; keeps directions that no input has where they were.

    Raises:
        TaskNotFoundError: the Share model does not know the task.
        MismatchError: no module of the task can be fitted, or the model is not the base.
    """
    task = share.task(adapter.name)
    modules = [m for m, c in task.coefficients.items() if not isinstance(c, Private)]
    updates = {m: adapter.layer(m) for m in adapter.shapes}
    layers = {m: share.model.layers[m] for m in modules if not share.model.layers[m].shape.kernel}
    if not layers:
        raise MismatchError(f"task {adapter.name!r}", "has no linear module in the subspace")
    moments = _collect(model, layers, updates, inputs)
    cores = {m: dense_cores([task.coefficients[m]], share.model.layers[m])[0] for m in layers}
    ranks = {m: _rank(task.coefficients[m]) for m in layers}
    fitted = {m: reduced_rank(moments[m], cores[m], ranks[m], ridge) for m in layers}
    pairs = {m: _split(core, ranks[m]) for m, core in fitted.items()}
    changed = share.retrained(adapter.name, pairs, {})
    return Calibrated(changed, _error(moments, cores), _error(moments, fitted))


def reduced_rank(moments: Moments, core: Tensor, p: int, ridge: float) -> Tensor:
    """The core of rank p with the smallest error on the outputs, float64 k_left x k_right."""
    k = len(moments.zz)
    weight = ridge * float(moments.zz.trace()) / max(k, 1)
    gram = moments.zz + weight * torch.eye(k, dtype=torch.float64)
    full: Tensor = torch.linalg.solve(gram, (moments.yz + weight * core).mT).mT
    if p >= min(full.shape):
        return full
    root = torch.linalg.cholesky(gram)
    u = torch.linalg.svd(full @ root, full_matrices=False)[0][:, :p]
    return torch.matmul(u, u.mT @ full)


def _rank(value: Coefficients) -> int:
    return value.p if isinstance(value, Factors) else min(value.matrix.shape)  # type: ignore[union-attr]


def _split(core: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """C = E F^T of rank p, balanced."""
    u, s, vh = torch.linalg.svd(core, full_matrices=False)
    root = s[:p].sqrt()
    return u[:, :p] * root, vh[:p].mT * root


def _error(moments: Mapping[str, Moments], cores: Mapping[str, Tensor]) -> float:
    """Root of the relative squared error of the outputs, over all modules."""
    wrong = sum(
        m.energy + float((cores[n].mT @ cores[n] * m.zz).sum() - 2 * (cores[n] * m.yz).sum())
        for n, m in moments.items()
    )
    total = sum(m.energy for m in moments.values())
    return (max(wrong, 0.0) / total) ** 0.5 if total else 0.0


@torch.no_grad()
def _collect(
    model: nn.Module,
    layers: Mapping[str, LayerSubspace],
    updates: Mapping[str, LayerUpdate],
    inputs: Iterable[Mapping[str, Tensor]],
) -> dict[str, Moments]:
    """Run the model as the original adapter makes it, and look at what each module is given."""
    moments = {
        m: Moments(
            torch.zeros(x.k[1], x.k[1], dtype=torch.float64),
            torch.zeros(x.k[0], x.k[1], dtype=torch.float64),
        )
        for m, x in layers.items()
    }
    with require("sharespace.nn", "train").applied(model, updates) as adapted:
        device = next(adapted.parameters()).device
        with _watching(adapted, layers, updates, moments):
            for batch in inputs:
                adapted.eval()(**{k: v.to(device) for k, v in batch.items()})
    return moments


@contextmanager
def _watching(
    model: nn.Module,
    layers: Mapping[str, LayerSubspace],
    updates: Mapping[str, LayerUpdate],
    moments: Mapping[str, Moments],
) -> Iterator[None]:
    handles = [
        model.get_submodule(m).register_forward_pre_hook(_adder(layer, updates[m], moments[m]))
        for m, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adder(layer: LayerSubspace, update: LayerUpdate, moments: Moments) -> Any:
    """A hook that adds a module's inputs (..., d) to its moments."""
    left, right = layer.left_basis.double(), layer.right_basis.double()
    up, down = update.scaling * update.up.double(), update.down.double()
    seen_up, gram_up = left.mT @ up, up.mT @ up

    def add(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        x = arguments[0].reshape(-1, arguments[0].shape[-1]).double().cpu()
        z, hidden = x @ right, x @ down.mT
        moments.zz += z.mT @ z
        moments.yz += seen_up @ (hidden.mT @ z)
        moments.energy += float((hidden.mT @ hidden * gram_up).sum())
        moments.count += len(x)

    return add
