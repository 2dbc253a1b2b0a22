"""The baselines that a Share model must beat: mean adapter, random basis, own SVDs at equal bytes.

Planted low-rank data flatter every method; beside these three, real adapters do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sharespace.errors import OptionError
from sharespace.linalg.budget.allocate import LayerOptions, own_svd_options, split_budget
from sharespace.linalg.updates import CanonicalUpdates, captured, seen_by, weights
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.build_layer import read_updates
from sharespace.subspace.fidelity import measure, sizes
from sharespace.subspace.state import ShareModel

TaskErrors = Mapping[str, float]
"""Task -> relative error over all its modules."""

_EXACT = 1e-9
"""Squared relative error below which own SVDs are exact but for the rounding of float32 factors."""


@dataclass(frozen=True)
class Baselines:
    """Relative errors of simpler ways to store the same adapters."""

    mean_adapter: TaskErrors
    """One update for all: the mean of the adapters that adapt the module."""
    random_basis: TaskErrors
    """The same k, random orthonormal bases."""
    own_svd: TaskErrors
    """Every adapter by its own truncated SVDs, at the bytes of bases and coefficients together."""
    shared: float
    """(own^2 - Share^2) / own^2 at equal *columns*, all tasks together, in [0, 1]."""
    shared_fraction: Mapping[str, float]
    """The same by task: what is really shared of it; 0 where its own SVD is exact."""


def baselines(model: ShareModel, originals: Sequence[Adapter], seed: int = 0) -> Baselines:
    """All baselines for a model and the adapters that it was made from.

    Args:
        model: of exactly the tasks of the adapters.
        originals: the adapters of all tasks, named as they; one layer is in memory at a time.
        seed: of the random basis.

    Raises:
        OptionError: the adapters are not those of the model's tasks.
    """
    _check_complete(model, originals)
    mean, random, own, norms = _TaskSums(), _TaskSums(), _TaskSums(), _TaskSums()
    own_svds: dict[str, _OwnSvds] = {}
    for module, names, updates in _each_layer(model, originals):
        norms.add(names, updates.norms)
        mean.add(names, mean_errors(updates))
        random.add(names, random_errors(updates, model.layers[module].k, seed))
        own_svds[module] = _OwnSvds(names, own_svd_options(updates, model.dtype.itemsize))
    for module, ranks in _split_bytes(model, own_svds, norms).items():
        own.add(own_svds[module].names, own_errors(own_svds[module].options.own, ranks))
    shared, shared_fraction = _shared(model, originals, own_svds)
    return Baselines(
        mean_adapter=mean.relative(norms),
        random_basis=random.relative(norms),
        own_svd=own.relative(norms),
        shared=shared,
        shared_fraction=shared_fraction,
    )


def own_ranks(model: ShareModel, originals: Sequence[Adapter]) -> dict[str, dict[str, int]]:
    """Module -> task -> columns of its own SVD, at the bytes of the model's bases and coefficients.

    Split over modules and tasks as well as can be, as in ``Baselines.own_svd``.

    Raises:
        OptionError: the adapters are not those of the model's tasks.
    """
    _check_complete(model, originals)
    norms, own_svds = _TaskSums(), {}
    for module, names, updates in _each_layer(model, originals):
        norms.add(names, updates.norms)
        own_svds[module] = _OwnSvds(names, own_svd_options(updates, model.dtype.itemsize))
    ranks = _split_bytes(model, own_svds, norms)
    return {m: dict(zip(own_svds[m].names, ranks[m], strict=True)) for m in own_svds}


@dataclass
class _TaskSums:
    """Squared errors or norms by task, summed over modules."""

    squares: dict[str, float] = field(default_factory=dict)

    def add(self, names: Sequence[str], values: Tensor) -> None:
        for name, value in zip(names, values.square().tolist(), strict=True):
            self.squares[name] = self.squares.get(name, 0.0) + value

    @property
    def total(self) -> float:
        """Sum over all tasks."""
        return sum(self.squares.values())

    def relative(self, norms: _TaskSums) -> dict[str, float]:
        return {
            n: math.sqrt(e / norms.squares[n]) if norms.squares[n] else 0.0
            for n, e in self.squares.items()
        }


@dataclass(frozen=True, eq=False)
class _OwnSvds:
    """What own SVDs of one module's updates would cost and lose."""

    names: list[str]
    """Names of the tasks that adapt the module."""
    options: LayerOptions


def _check_complete(model: ShareModel, originals: Sequence[Adapter]) -> None:
    """Bytes are shared by all tasks, so a comparison at equal bytes needs all of them."""
    given = {a.name for a in originals}
    odd = [repr(n) for n in [*model.tasks, *given] if (n in given) != (n in model.tasks)]
    if odd:
        raise OptionError(
            f"baselines for {', '.join(odd[:5])}",
            "they compare all tasks of the model with their original adapters",
            "Give every task's adapter, and no other",
        )


def _each_layer(
    model: ShareModel, originals: Sequence[Adapter]
) -> Iterator[tuple[str, list[str], CanonicalUpdates]]:
    """(module, names of its adapters, their updates), one layer in memory at a time."""
    for module in model.layers:
        members = [a for a in originals if module in a.shapes]
        if members:
            updates = read_updates(members, module, torch.device("cpu"))
            yield module, [a.name for a in members], updates


def _split_bytes(
    model: ShareModel, own_svds: Mapping[str, _OwnSvds], norms: _TaskSums
) -> dict[str, list[int]]:
    """Module -> the rank of each task's own SVD there, at the bytes of bases and coefficients."""
    stored = sizes(model)
    budget = stored.basis + stored.coefficients
    totals = torch.tensor(list(norms.squares.values()), dtype=torch.float64).sqrt()
    inverse = dict(zip(norms.squares, weights(totals).tolist(), strict=True))
    by_module = {
        m: torch.tensor([inverse[n] for n in svds.names], dtype=torch.float64)
        for m, svds in own_svds.items()
    }
    offers = [svds.options.affordable(by_module[m], budget) for m, svds in own_svds.items()]
    choices = dict(zip(own_svds, split_budget(offers, budget), strict=True))
    return {
        m: svds.options.own_ranks(by_module[m], choices[m].columns) for m, svds in own_svds.items()
    }


def _shared(
    model: ShareModel, originals: Sequence[Adapter], own_svds: Mapping[str, _OwnSvds]
) -> tuple[float, dict[str, float]]:
    """The shared fraction of all tasks together, and of each.

    Share against own SVDs with as many columns in each module, split over its tasks as well as can
    be. Each module counts by relative errors, so that a large module does not decide alone.
    """
    own, share = _TaskSums(), _TaskSums()
    lost = measure(model, originals)
    for module, svds in own_svds.items():
        inverse = weights(svds.options.energies.sqrt())
        ranks = svds.options.own_ranks(inverse, _columns(model, module))
        own.add(svds.names, inverse * own_errors(svds.options.own, ranks))
        errors = torch.tensor([lost[n][module] for n in svds.names], dtype=torch.float64)
        share.add(svds.names, inverse * errors)
    by_task = {n: _fraction(own.squares[n], share.squares[n]) for n in own.squares}
    return _fraction(own.total, share.total), by_task


def _fraction(own: float, share: float) -> float:
    """0 where own SVDs are exact but for rounding: there is nothing to gain."""
    return min(max((own - share) / own, 0.0), 1.0) if own > _EXACT else 0.0


def _columns(model: ShareModel, module: str) -> int:
    """Pairs of directions that a module stores, in bases and by updates stored per task."""
    shape = model.layers[module].shape
    left, right = model.layers[module].k
    values = [t.coefficients.get(module) for t in model.tasks.values()]
    per_task = sum(c.rank for c in values if c is not None and not c.is_shared)
    return (left * shape.out_features + right * shape.in_features) // shape.sides + per_task


def inner_products(updates: CanonicalUpdates, chunk: int = 1024) -> Tensor:
    """<dW_i, dW_j> for all pairs of tasks.

    Args:
        updates: T of them, c directions in sum.
        chunk: rows at once of the c x c matrix of all directions' inner products.

    Returns:
        float64 [T, T].
    """
    sigma = updates.sigma.double()
    ranks = torch.tensor(updates.ranks, device=sigma.device)
    owner = torch.repeat_interleave(torch.arange(len(updates.ranks), device=sigma.device), ranks)
    result = torch.zeros(len(updates.ranks), len(updates.ranks), dtype=torch.float64)
    for start in range(0, len(sigma), chunk):
        rows = slice(start, start + chunk)
        left = (updates.left[:, rows].mT @ updates.left).double()
        right = (updates.right[:, rows].mT @ updates.right).double()
        products = left * right * sigma[rows, None] * sigma
        by_task = products.new_zeros(len(products), len(ranks)).index_add_(1, owner, products)
        result.index_add_(0, owner[rows].cpu(), by_task.cpu())
    return result


def mean_errors(updates: CanonicalUpdates) -> Tensor:
    """|dW_i - mean of all dW_j| for every task: float64 [tasks]."""
    products = inner_products(updates)
    cross = products.mean(1)
    return (torch.diagonal(products) - 2 * cross + cross.mean()).clamp_min(0).sqrt()


def random_errors(updates: CanonicalUpdates, k: tuple[int, int], seed: int = 0) -> Tensor:
    """|dW_i - projection onto random orthonormal bases| for every task: float64 [tasks]."""
    generator = torch.Generator().manual_seed(seed)
    seen = []
    for side, size in zip((updates, updates.flipped), k, strict=True):
        basis = torch.randn(side.left.shape[0], size, generator=generator).to(side.left)
        seen.append(seen_by(side, torch.linalg.qr(basis)[0]))
    sigma = updates.blocks(updates.sigma)
    inside = captured(seen[0], sigma, seen[1], None).cpu()
    return (updates.norms.cpu().square() - inside).clamp_min(0).sqrt()


def own_errors(energies: Tensor, ranks: list[int]) -> Tensor:
    """Error of each task's own SVD, truncated to its rank: float64 [tasks].

    Args:
        energies: tasks x r, squared singular values, descending.
        ranks: directions that each task keeps.
    """
    index = torch.arange(energies.shape[1])
    lost = energies * (index >= torch.tensor(ranks)[:, None])
    return lost.sum(1).sqrt()
