"""Fit a task's coefficients to its original adapter on unlabelled inputs.

Where only an adapter came, projection keeps what is nearest in weights. With inputs at hand one can
keep what is nearest in outputs. For each module, over the inputs x that it sees,

    C = argmin sum_x |beta C alpha^T x - dW x|^2 + ridge |C - C_projected|^2,   rank C <= p,

which needs only z = alpha^T x (k_right) and y = beta^T dW x (k_left): the second moments of z and
of (y, z), never an n x d or d x d matrix. The rank is cut in the metric of the outputs
(reduced-rank regression, Izenman 1975).

What a module of the base model is given and what an adapter makes of it, as second moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sharespace.errors import MismatchError, OptionError
from sharespace.learn.prepare import check_sides, coordinates, is_grouped, update_output
from sharespace.share import Share
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.basis_method import dense_cores
from sharespace.subspace.coefficients import compact
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import Task

FactorPair = tuple[Tensor, Tensor]
"""(E, F), k_left x p and k_right x p."""


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
    module whose outputs would not come nearer stays as it is, and so do layers stored per task,
    convolutions in groups, and coefficients in the subspaces of several groups of tasks.

    Args:
        model: the base model; not changed.
        share: knows the task of the adapter's name; it does not change.
        adapter: the original.
        inputs: batches of the model's arguments; positions whose ``attention_mask`` is 0 do not
            count.
        ridge: above 0, weight of the coefficients as they are, relative to the inputs' mean energy
            per direction; keeps directions that no input has where they were.
        component: component of a pipeline that the model is, such as ``"unet"``.

    Returns:
        The Share model with the task's new coefficients, and the outputs' errors before and after.

    Raises:
        TaskNotFoundError: the Share model does not know the task.
        MismatchError: no module of the task can be fitted, or the model is not the base.
        OptionError: ridge is not above 0, or the inputs are none or not finite.
    """
    if not ridge > 0:  # NaN is refused, too.
        raise OptionError(f"ridge={ridge}", "it must be above 0", "1e-3 is the default")
    task = share.task(adapter.name)
    prefix = f"{component}." if component else ""
    updates = _updates(model, adapter, prefix)
    layers = _fitted_layers(model, share, task, updates, prefix)
    moments = collect_moments(model, layers, updates, inputs)
    pairs: dict[str, FactorPair] = {}
    before = after = total = 0.0
    for module, sums in moments.items():
        pair, errors = _fit_module(sums, layers[module], task, prefix + module, ridge)
        if pair is not None:
            pairs[prefix + module] = pair
        before, after, total = before + errors[0], after + errors[1], total + sums.energy
    calibrated = share.retrained(adapter.name, pairs, {}, event="calibrate")
    return Calibrated(calibrated, _root_ratio(before, total), _root_ratio(after, total))


def reduced_rank(moments: Moments, core: Tensor, p: int, ridge: float) -> Tensor:
    """The core of rank p with the smallest error on the outputs, float64 k_left x k_right.

    Args:
        moments: of one module.
        core: what the ridge keeps the result near to, k_left x k_right.
        p: the rank.
        ridge: relative to the inputs' mean energy per direction.
    """
    k = len(moments.zz)
    # Relative to the inputs' own size, so that one default does for any model.
    weight = ridge * float(moments.zz.trace()) / max(k, 1)
    gram = moments.zz + weight * torch.eye(k, dtype=torch.float64)
    d: Tensor = torch.linalg.solve(gram, (moments.yz + weight * moments.triangle @ core).mT).mT
    if p < min(d.shape):
        # With G = L L^T the error of D' is |(D' - D) L|^2 but for a constant, so the best D' of
        # rank p is D projected onto the leading left singular vectors of D L (Eckart-Young).
        u = torch.linalg.svd(d @ torch.linalg.cholesky(gram), full_matrices=False)[0][:, :p]
        d = u @ (u.mT @ d)
    fitted: Tensor = torch.linalg.solve_triangular(moments.triangle, d, upper=True)
    return fitted


def _fit_module(
    moments: Moments, layer: LayerSubspace, task: Task, module: str, ridge: float
) -> tuple[FactorPair | None, tuple[float, float]]:
    """One module's (E, F), None where they are best left alone, and its errors before and after."""
    value = task.coefficients[module].within(layer.k)
    core = dense_cores([value], layer)[0]
    before = moments.squared_error(core)
    if not float(moments.zz.trace()) > 0:
        return None, (before, before)
    p = min(value.rank, *layer.k)
    pair = _split(reduced_rank(moments, core, p, ridge), p)
    # As stored: the cast to the model's dtype may cost more than the fit gains.
    cast = dense_cores([compact(*pair, layer.left_basis.dtype)], layer)[0]
    after = moments.squared_error(cast)
    return (pair, (before, after)) if after < before else (None, (before, before))


def _split(core: Tensor, p: int) -> FactorPair:
    """C = E F^T of rank p, balanced."""
    u, s, vh = torch.linalg.svd(core, full_matrices=False)
    root = s[:p].sqrt()
    return u[:, :p] * root, vh[:p].mT * root


def _updates(model: nn.Module, adapter: Adapter, prefix: str) -> dict[str, LayerUpdate]:
    """The adapter's updates by module of this model.

    Raises:
        MismatchError: one does not fit the model.
    """
    updates = {
        m.removeprefix(prefix): adapter.layer(m) for m in adapter.shapes if m.startswith(prefix)
    }
    check_sides(model, {m: (u.up.shape[0], u.down.shape[1]) for m, u in updates.items()})
    return updates


def _fitted_layers(
    model: nn.Module, share: Share, task: Task, updates: Mapping[str, LayerUpdate], prefix: str
) -> dict[str, LayerSubspace]:
    """Modules of this model whose coefficients can be fitted -> subspace that they are in.

    Raises:
        MismatchError: there is none.
    """
    layers = {
        m: part
        for m in updates
        if (value := task.coefficients.get(prefix + m)) is not None
        and (part := value.subspace_in(share.model.layers[prefix + m])) is not None
        and min(part.k) > 0
        and not is_grouped(model.get_submodule(m))
    }
    if not layers:
        raise MismatchError(
            f"task {task.name!r}",
            "has no module in the subspace that could be fitted",
            "Layers stored per task and convolutions in groups cannot be",
        )
    return layers


def _root_ratio(part: float, whole: float) -> float:
    return (part / whole) ** 0.5 if whole else 0.0


@dataclass(eq=False)
class Moments:
    """Sums over all inputs x of one module, float64, in orthonormal directions Q of the left
    basis.

    With z = alpha^T x, y = Q^T dW x and D = R C, where beta = Q R (R = I but for the rounding of a
    basis stored in 16 bits), the outputs' error is sum |D z - y|^2 + what Q does not see.
    """

    triangle: Tensor
    """R, k_left x k_left, upper triangular."""
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
        d = self.triangle @ core
        # At least 0: the terms cancel where the fit is exact, and rounding may leave less.
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
    counters = {m: _MomentCounter(layer, updates[m]) for m, layer in layers.items()}
    with _hooked(model, updates, counters):
        for batch in inputs:
            for counter in counters.values():
                counter.mask = batch.get("attention_mask")
            model.eval()(**{k: v.to(device) for k, v in batch.items()})
    model.train(training)
    return _checked({m: counter.moments for m, counter in counters.items()})


class _MomentCounter:
    """Adds up one module's moments."""

    def __init__(self, layer: LayerSubspace, update: LayerUpdate) -> None:
        self.left, triangle = torch.linalg.qr(layer.left_basis.double())
        self.right = layer.right_basis.double()
        self.up, self.down = update.scaling * update.up.double(), update.down.double()
        self.mask: Tensor | None = None
        k_left, k_right = layer.k
        self.moments = Moments(
            triangle,
            torch.zeros(k_right, k_right, dtype=torch.float64),
            torch.zeros(k_left, k_right, dtype=torch.float64),
        )

    def add(self, module: nn.Module, x: Tensor) -> None:
        """Count the inputs x of the module."""
        directions = torch.cat([self.right.mT, self.down])
        rows = self._rows(coordinates(module, directions.to(x), x)).double().cpu()
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
    model: nn.Module, updates: Mapping[str, LayerUpdate], counters: Mapping[str, _MomentCounter]
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


def _hook(
    update: LayerUpdate, counter: _MomentCounter | None
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook that counts a module's inputs and adds the update to its output."""

    def run(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = arguments[0]
        # 16 bits would lose the small differences that the fit is about.
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
    used = {m: sums for m, sums in moments.items() if sums.count}
    if not used:
        raise OptionError("inputs", "no module of the task was given any", "Give some batches")
    for module, sums in used.items():
        if not bool(torch.isfinite(sums.zz).all() and torch.isfinite(sums.yz).all()):
            raise OptionError("inputs", f"module {module!r} meets NaN or infinity", "Check them")
    return used
