"""Fit a task's coefficients to its original adapter on unlabelled inputs.

Where only an adapter came, projection keeps what is nearest in weights. With inputs at hand one can
keep what is nearest in outputs: per module, over the inputs x that it sees,

    C = argmin sum_x |beta C alpha^T x - dW x|^2 + ridge |C - C_projected|^2,   rank C <= p,

which needs only z = alpha^T x (k_right) and y = beta^T dW x (k_left): the second moments of z and
of (y, z), never an n x d or d x d matrix. The rank is cut in the metric of the outputs
(reduced-rank regression, Izenman 1975).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sharespace.errors import MismatchError, OptionError
from sharespace.learn.inputs import is_grouped
from sharespace.learn.moments import Moments, collect_moments
from sharespace.learn.prepare import check_sides
from sharespace.share import Share
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.parts import inside, part_of
from sharespace.subspace.project import dense_cores, stored
from sharespace.subspace.state import Coefficients, Factors, LayerSubspace, Private, Task

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A Share model in which one task was fitted to its original adapter's outputs."""

    share: Share
    before: float
    """Relative error of the updates' outputs with the coefficients as they were: the root of
    sum_x |dW^ x - dW x|^2 / sum_x |dW x|^2, both sums over all fitted modules."""
    after: float
    """The same after the fit, on the same inputs, as stored; never larger."""


def calibrate(
    model: nn.Module,
    share: Share,
    adapter: Adapter,
    inputs: Iterable[Mapping[str, Tensor]],
    *,
    ridge: float = 1e-3,
    component: str | None = None,
) -> Calibrated:
    """Fit the coefficients of a task that came as an adapter; no labels are needed.

    The task is still that adapter: its ledger's bound grows by how far each update was moved. A
    module whose outputs would not come nearer stays as it is, and so do private updates,
    convolutions in groups, and coefficients in several families' subspaces.

    Args:
        model: the base model; not changed.
        share: knows the task of the adapter's name.
        adapter: the original.
        inputs: batches of the model's arguments; positions whose ``attention_mask`` is 0 do not
            count.
        ridge: above 0, weight of the coefficients as they are, relative to the inputs' mean energy
            per direction; keeps directions that no input has where they were.
        component: part of a pipeline that the model is, such as ``"unet"``.

    Raises:
        TaskNotFoundError: the Share model does not know the task.
        MismatchError: no module of the task can be fitted, or the model is not the base.
        OptionError: ridge is not above 0, or the inputs are none or not finite.
    """
    if not ridge > 0:
        raise OptionError(f"ridge={ridge}", "it must be above 0", "1e-3 is the default")
    task = share.task(adapter.name)
    prefix = f"{component}." if component else ""
    updates = _updates(model, adapter, prefix)
    layers = _fitted_layers(model, share, task, updates, prefix)
    moments = collect_moments(model, layers, updates, inputs)
    pairs: dict[str, Pair] = {}
    before = after = total = 0.0
    for module, found in moments.items():
        pair, errors = _fit_module(found, layers[module], task, prefix + module, ridge)
        if pair is not None:
            pairs[prefix + module] = pair
        before, after, total = before + errors[0], after + errors[1], total + found.energy
    changed = share.retrained(adapter.name, pairs, {}, event="calibrate")
    return Calibrated(changed, _root_ratio(before, total), _root_ratio(after, total))


def reduced_rank(moments: Moments, core: Tensor, p: int, ridge: float) -> Tensor:
    """The core of rank p with the smallest error on the outputs, float64 k_left x k_right.

    Args:
        core: what the ridge keeps the result near to.
    """
    k = len(moments.zz)
    weight = ridge * float(moments.zz.trace()) / max(k, 1)
    gram = moments.zz + weight * torch.eye(k, dtype=torch.float64)
    d: Tensor = torch.linalg.solve(gram, (moments.yz + weight * moments.frame @ core).mT).mT
    if p < min(d.shape):
        u = torch.linalg.svd(d @ torch.linalg.cholesky(gram), full_matrices=False)[0][:, :p]
        d = u @ (u.mT @ d)
    fitted: Tensor = torch.linalg.solve_triangular(moments.frame, d, upper=True)
    return fitted


def _fit_module(
    moments: Moments, layer: LayerSubspace, task: Task, module: str, ridge: float
) -> tuple[Pair | None, tuple[float, float]]:
    """One module's (E, F), None where they are best left alone, and its errors before and after."""
    value = _inside(task, module, layer)
    core = dense_cores([value], layer)[0]
    before = moments.squared_error(core)
    if not float(moments.zz.trace()) > 0:
        return None, (before, before)
    p = value.p if isinstance(value, Factors) else min(layer.k)
    pair = _split(reduced_rank(moments, core, p, ridge), p)
    # As stored: the cast to the model's dtype may cost more than the fit gains.
    cast = dense_cores([stored(*pair, layer.left_basis.dtype)], layer)[0]
    after = moments.squared_error(cast)
    return (pair, (before, after)) if after < before else (None, (before, before))


def _inside(task: Task, module: str, layer: LayerSubspace) -> Coefficients:
    """The coefficients in the directions of the task's own subspace."""
    value = task.coefficients[module]
    return value if isinstance(value, Private) else inside(value, layer.k)


def _split(core: Tensor, p: int) -> Pair:
    """C = E F^T of rank p, balanced."""
    u, s, vh = torch.linalg.svd(core, full_matrices=False)
    root = s[:p].sqrt()
    return u[:, :p] * root, vh[:p].mT * root


def _updates(model: nn.Module, adapter: Adapter, prefix: str) -> dict[str, LayerUpdate]:
    """The adapter's updates by module of this model.

    Raises:
        MismatchError: one does not fit the model.
    """
    found = {
        m.removeprefix(prefix): adapter.layer(m) for m in adapter.shapes if m.startswith(prefix)
    }
    check_sides(model, {m: (u.up.shape[0], u.down.shape[1]) for m, u in found.items()})
    return found


def _fitted_layers(
    model: nn.Module, share: Share, task: Task, updates: Mapping[str, LayerUpdate], prefix: str
) -> dict[str, LayerSubspace]:
    """Modules of this model whose coefficients can be fitted -> subspace that they are in.

    Raises:
        MismatchError: there is none.
    """
    found = {
        m: part
        for m in updates
        if not isinstance(value := task.coefficients.get(prefix + m), Private | None)
        and (part := part_of(share.model.layers[prefix + m], value)) is not None
        and min(part.k) > 0
        and not is_grouped(model.get_submodule(m))
    }
    if not found:
        raise MismatchError(
            f"task {task.name!r}", "has no module in the subspace that could be fitted"
        )
    return found


def _root_ratio(part: float, whole: float) -> float:
    return (part / whole) ** 0.5 if whole else 0.0
