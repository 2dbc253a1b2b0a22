"""What a Share model of these adapters would be worth, before anything is written.

It must beat simple baselines: the mean adapter, a random basis, and own SVDs at equal bytes.
Planted low-rank data flatter every method; beside these three, real adapters do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sharespace.errors import OptionError
from sharespace.linalg.allocate import LayerOptions, own_svd_options, split_budget
from sharespace.linalg.updates import CanonicalUpdates, captured, seen_by, weights
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.build_layer import read_updates
from sharespace.subspace.fidelity import (
    ERASED_ERROR,
    LARGE_BOUND,
    Bytes,
    Fidelity,
    TaskFidelity,
    fidelity,
    measure,
    sizes,
    tally_storage,
)
from sharespace.subspace.state import ShareModel
from sharespace.words import count, human, percent

PlanVerdict = Literal["worth it", "marginal", "not worth it"]


TaskErrors = Mapping[str, float]
"""Task -> relative error over all its modules."""

_EXACT = 1e-9
"""Squared relative error below which own SVDs are exact but for the rounding of float32 factors."""


@dataclass(frozen=True)
class Judgement:
    """Whether a Share model that is there is worth it, by its bytes and by what its tasks lost."""

    verdict: PlanVerdict
    reason: str

    def __str__(self) -> str:
        return f"{self.verdict.capitalize()}: {self.reason}."


@dataclass(frozen=True)
class CoefficientCount:
    """The paper's own count: the coefficients that are trained per task, nothing else."""

    parameters: int
    """Numbers of the coefficients of all tasks."""
    nbytes: int


@dataclass(frozen=True)
class StorageSummary:
    """How the updates are stored, one for each task and module that it adapts."""

    updates: int
    per_task: int
    """Outside the subspace, by own SVDs."""
    leading: int
    """In the subspace, but in its leading directions only."""
    nothing: int
    """Not at all: the budget did not reach so far, or the update is zero."""
    wholly_per_task: int
    """Tasks of which some update is stored per task and none is in a subspace."""
    ranks: tuple[int, int]
    """Smallest and largest rank of an update."""
    grouped_modules: int
    """Modules in which each group of tasks has a subspace of its own."""
    subspaces: int
    """Most subspaces of a module."""


@dataclass(frozen=True)
class BuildPlan:
    """What ``init`` would give for a list of adapters, and whether it is worth it."""

    bytes: Bytes
    """Bytes as a Share model, and what the adapters take now."""
    coefficients_only: CoefficientCount
    break_even: int | None
    """From how many adapters like these the Share model is the smaller one; None: never."""
    fidelity: Fidelity
    """Expected error per task: that of the model as it would be written."""
    baselines: Baselines
    dimensions: Mapping[str, tuple[int, int]]
    """Module -> (k_left, k_right); (0, 0) where its updates are stored per task."""
    per_task_modules: int
    """Modules of which every update is stored per task."""
    storage: StorageSummary
    budget: int | None
    """Bytes that bases and updates may take together, where a budget chose."""
    verdict: PlanVerdict
    reason: str


def plan(model: ShareModel, adapters: Sequence[Adapter]) -> BuildPlan:
    """Judge a model that was built but not written.

    Args:
        model: of exactly these adapters.
        adapters: the originals.
    """
    measured = fidelity(model, adapters)
    simpler = baselines(model, adapters)
    break_even = adapters_to_break_even(model, adapters)
    verdict, reason = judge(measured, simpler, break_even, len(adapters))
    return BuildPlan(
        bytes=measured.bytes,
        coefficients_only=coefficients_only(model),
        break_even=break_even,
        fidelity=measured,
        baselines=simpler,
        dimensions={m: layer.k for m, layer in model.layers.items()},
        per_task_modules=sum(_is_per_task(model, m) for m in model.layers),
        storage=storage(model),
        budget=model.settings.budget,
        verdict=verdict,
        reason=reason,
    )


def storage(model: ShareModel) -> StorageSummary:
    """How many updates are in the subspace or stored per task, and their bytes."""
    tally = tally_storage(model.tasks.values(), model.layers)
    groups = [len(layer.groups) for layer in model.layers.values()]
    ranks = [c.rank for t in model.tasks.values() for c in t.coefficients.values()]
    return StorageSummary(
        updates=tally.total.total.updates,
        per_task=tally.total.per_task.updates,
        leading=tally.total.leading.updates,
        nothing=tally.total.nothing.updates,
        wholly_per_task=sum(
            t.per_task.updates > 0 == t.inside.updates for t in tally.tasks.values()
        ),
        ranks=(min(ranks, default=0), max(ranks, default=0)),
        grouped_modules=sum(number > 0 for number in groups),
        subspaces=max([1, *groups]),
    )


def coefficients_only(model: ShareModel) -> CoefficientCount:
    """Coefficients only; the basis and all else are left out, as the paper does."""
    values = [c for t in model.tasks.values() for c in t.coefficients.values()]
    nbytes = sum(c.nbytes for c in values if c.is_shared)
    return CoefficientCount(nbytes // model.dtype.itemsize, nbytes)


def adapters_to_break_even(model: ShareModel, adapters: Sequence[Adapter]) -> int | None:
    """Smallest T with basis + T coefficients < T LoRA, for adapters of the mean size of these,
    all in the stored dtype (docs/method.md, "Honest size")."""
    tasks, size = len(adapters), model.dtype.itemsize
    lora = sum(r * a.shapes[m].sides for a in adapters for m, r in a.ranks.items()) * size / tasks
    values = [c.nbytes for t in model.tasks.values() for c in t.coefficients.values()]
    saved = lora - sum(values) / tasks
    basis = sum(layer.nbytes for layer in model.layers.values())
    return max(math.floor(basis / saved) + 1, 1) if saved > 0 else None


def judge(
    measured: Fidelity, simpler: Baselines, break_even: int | None, adapters: int
) -> tuple[PlanVerdict, str]:
    """A verdict in plain words."""
    share, own = measured.mean_relative_error, _mean(simpler.own_svd)
    fraction = simpler.shared
    size = measured.bytes.total / max(measured.bytes.adapters, 1)
    if break_even is None or adapters < break_even:
        when = f"it would be from {break_even} adapters like these" if break_even else "it never is"
        return "not worth it", f"it is no smaller than the adapters at this fidelity; {when}"
    if share >= 0.97 * own:
        return "not worth it", _no_gain(fraction, share, own)
    text = (
        f"it takes {percent(size)} of the bytes at a mean error of {share:.3f} "
        f"(own SVDs of the same bytes: {own:.3f}); {percent(fraction)} is shared"
    )
    return ("worth it" if share <= 0.7 * own else "marginal"), text


def judge_stored(total: int, adapters: int, tasks: Mapping[str, TaskFidelity]) -> Judgement:
    """A verdict on tasks whose adapters need not be there any more.

    Own SVDs of the same bytes are not compared, which takes the adapters: see ``plan``.

    Args:
        total: bytes of the Share model.
        adapters: bytes of the adapters that the tasks came from.
        tasks: what is kept of each.
    """
    sizes = f"{human(total)} instead of {human(adapters)}"
    whole = count(len(tasks), "task")
    if not tasks:
        return Judgement("not worth it", "there is no task in it")
    if total >= adapters:
        times = f"{total / adapters:.2g} times their bytes" if adapters else sizes
        return Judgement(
            "not worth it", f"it is no smaller than the adapters of its {whole}: {times} ({sizes})"
        )
    size = f"it takes {percent(total / adapters)} of the adapters' bytes ({sizes})"
    erased = sum(task.relative_error >= ERASED_ERROR for task in tasks.values())
    if erased:
        return Judgement("not worth it", f"{size}, but nothing is left of {erased} of {whole}")
    lossy = sum(task.bound >= LARGE_BOUND for task in tasks.values())
    if lossy:
        text = f"{size}, but {lossy} of {whole} may have lost {percent(LARGE_BOUND)} or more"
        return Judgement("marginal" if 2 * lossy < len(tasks) else "not worth it", text)
    mean = sum(task.relative_error for task in tasks.values()) / len(tasks)
    largest = max(task.bound for task in tasks.values())
    text = f"{size}; the mean error is {percent(mean)}, and no task lost more than "
    # The same adapters may get "not worth it" from ``plan``, where own SVDs do as well.
    compared = " (plan also compares own SVDs of the same bytes)"
    return Judgement("worth it", text + percent(largest) + compared)


def _no_gain(fraction: float, share: float, own: float) -> str:
    against = f"own SVDs of the same bytes have an error of {own:.3f}, Share {share:.3f}"
    if fraction < 0.1:
        return (
            f"these adapters share nothing to speak of ({percent(fraction)} at equal columns); "
            f"{against}. Sharing is made by training in the subspace, not found afterwards"
        )
    return (
        f"{percent(fraction)} is shared at equal columns, but the bytes are spread badly over the "
        f"layers; {against}. A byte budget spreads them"
    )


def _is_per_task(model: ShareModel, module: str) -> bool:
    values = [t.coefficients.get(module) for t in model.tasks.values()]
    shared = [v.is_shared for v in values if v is not None]
    return bool(shared) and not any(shared)


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / max(len(values), 1)


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
