"""What a Share model of these adapters would be worth, before anything is written.

The baselines that a Share model must beat: mean adapter, random basis, own SVD at equal bytes.

Planted low-rank data flatter every method; beside these three, real adapters do not.

What costs nothing to know: errors of the mean update, of a random basis, of own SVDs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sharespace.errors import OptionError
from sharespace.linalg.budget.allocate import LayerOptions, own_svd_options, split_budget
from sharespace.linalg.updates import CanonicalUpdates, captured, seen_by, weights
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.build_layer import read_updates
from sharespace.subspace.fidelity import Bytes, Fidelity, fidelity, measure, sizes, tally_storage
from sharespace.subspace.state import ShareModel

PlanVerdict = Literal["worth it", "marginal", "not worth it"]

TaskErrors = Mapping[str, float]
"""Task -> relative error over all its modules."""

ALL = ""
"""Key of the sum over tasks; no task has an empty name."""

_CHUNK = 1024


@dataclass(frozen=True)
class PaperCount:
    """The paper's own count: the coefficients that are trained per task, nothing else."""

    parameters: int
    """Coefficients of all tasks."""
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
    """Tasks of which some update is private and none is in a subspace."""
    ranks: tuple[int, int]
    """Smallest and largest rank of an update."""
    grouped_modules: int
    """Modules in which each family of tasks has a subspace of its own."""
    subspaces: int
    """Most subspaces of a module."""


@dataclass(frozen=True)
class BuildPlan:
    """What `init` would give."""

    bytes: Bytes
    """As Share, and what the adapters take now."""
    paper_count: PaperCount
    break_even: int | None
    """From how many adapters like these the Share model is the smaller one; None: never."""
    fidelity: Fidelity
    """Expected error per task: that of the model as it would be written."""
    baselines: Baselines
    dimensions: Mapping[str, tuple[int, int]]
    """Module -> (k_left, k_right); (0, 0) where its updates are stored per task."""
    per_task_modules: int
    """Modules of which every update is private."""
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
    kept = fidelity(model, adapters)
    simpler = baselines(model, adapters)
    break_even = adapters_to_break_even(model, adapters)
    verdict, reason = judge(kept, simpler, break_even, len(adapters))
    return BuildPlan(
        bytes=kept.bytes,
        paper_count=paper_count(model),
        break_even=break_even,
        fidelity=kept,
        baselines=simpler,
        dimensions={m: layer.k for m, layer in model.layers.items()},
        per_task_modules=sum(_is_per_task(model, m) for m in model.layers),
        storage=storage(model),
        budget=model.settings.budget,
        verdict=verdict,
        reason=reason,
    )


def storage(model: ShareModel) -> StorageSummary:
    """What each update became."""
    found = tally_storage(model.tasks.values(), model.layers)
    parts = [len(layer.groups) for layer in model.layers.values()]
    ranks = [c.rank for t in model.tasks.values() for c in t.coefficients.values()]
    return StorageSummary(
        updates=found.total.total.updates,
        per_task=found.total.per_task.updates,
        leading=found.total.leading.updates,
        nothing=found.total.nothing.updates,
        wholly_per_task=sum(
            t.per_task.updates > 0 == t.inside.updates for t in found.tasks.values()
        ),
        ranks=(min(ranks, default=0), max(ranks, default=0)),
        grouped_modules=sum(count > 0 for count in parts),
        subspaces=max([1, *parts]),
    )


def paper_count(model: ShareModel) -> PaperCount:
    """Coefficients only; the basis and all else are left out, as the paper does."""
    values = [c for t in model.tasks.values() for c in t.coefficients.values()]
    nbytes = sum(c.nbytes for c in values if c.is_shared)
    return PaperCount(nbytes // model.dtype.itemsize, nbytes)


def adapters_to_break_even(model: ShareModel, adapters: Sequence[Adapter]) -> int | None:
    """Smallest T with basis + T coefficients < T LoRA, for adapters of the mean size of these,
    all in the stored dtype (method.md, "Honest size")."""
    count, size = len(adapters), model.dtype.itemsize
    lora = sum(r * a.shapes[m].sides for a in adapters for m, r in a.ranks.items()) * size / count
    values = [c.nbytes for t in model.tasks.values() for c in t.coefficients.values()]
    saved = lora - sum(values) / count
    basis = sum(layer.nbytes for layer in model.layers.values())
    return max(math.floor(basis / saved) + 1, 1) if saved > 0 else None


def judge(
    kept: Fidelity, simpler: Baselines, break_even: int | None, count: int
) -> tuple[PlanVerdict, str]:
    """A verdict in plain words."""
    share, own = kept.mean_relative_error, _mean(simpler.own_svd)
    fraction = simpler.shared
    size = kept.bytes.total / max(kept.bytes.adapters, 1)
    if break_even is None or count < break_even:
        when = f"it would be from {break_even} adapters like these" if break_even else "it never is"
        return "not worth it", f"no smaller than the adapters at this fidelity; {when}"
    if share >= 0.97 * own:
        return "not worth it", _no_gain(fraction, share, own)
    text = (
        f"{size:.0%} of the bytes at a mean error of {share:.3f} "
        f"(own SVDs of the same bytes: {own:.3f}); {fraction:.0%} is shared"
    )
    return ("worth it" if share <= 0.7 * own else "marginal"), text


def _no_gain(fraction: float, share: float, own: float) -> str:
    against = f"own SVDs of the same bytes have an error of {own:.3f}, Share {share:.3f}"
    if fraction < 0.1:
        return (
            f"these adapters share nothing to speak of ({fraction:.0%} at equal columns); "
            f"{against}. Sharing is made by training in the subspace, not found afterwards"
        )
    return (
        f"{fraction:.0%} is shared at equal columns, but the bytes are spread badly over the "
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


@dataclass
class _Sums:
    """Squared errors and norms by task, summed over modules."""

    squares: dict[str, float] = field(default_factory=dict)

    def add(self, names: Sequence[str], values: Tensor) -> None:
        for name, value in zip(names, values.square().tolist(), strict=True):
            self.squares[name] = self.squares.get(name, 0.0) + value

    def relative(self, norms: _Sums) -> dict[str, float]:
        return {
            n: math.sqrt(e / norms.squares[n]) if norms.squares[n] else 0.0
            for n, e in self.squares.items()
        }


def baselines(model: ShareModel, originals: Sequence[Adapter], seed: int = 0) -> Baselines:
    """All baselines for a model and the adapters that it was made from.

    Args:
        originals: the adapters of all tasks, named as they; one layer is in memory at a time.
        seed: of the random basis.

    Raises:
        OptionError: the adapters are not those of the model's tasks.
    """
    _check_complete(model, originals)
    mean, random, norms = _Sums(), _Sums(), _Sums()
    itemsize = torch.empty(0, dtype=model.dtype).element_size()
    profiles: dict[str, LayerOptions] = {}
    members: dict[str, list[str]] = {}
    for module, layer in model.layers.items():
        mine = [a for a in originals if module in a.shapes]
        if not mine:
            continue
        updates = read_updates(mine, module, torch.device("cpu"))
        names = members[module] = [a.name for a in mine]
        norms.add(names, updates.norms)
        mean.add(names, mean_errors(updates))
        random.add(names, random_errors(updates, layer.k, seed))
        profiles[module] = own_svd_options(updates, itemsize)
    stored = sizes(model)
    own = _own_svd(profiles, members, norms, stored)
    fractions = _shared(model, originals, profiles, members)
    return Baselines(
        mean_adapter=mean.relative(norms),
        random_basis=random.relative(norms),
        own_svd=own.relative(norms),
        shared=fractions.pop(ALL),
        shared_fraction=fractions,
    )


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


def own_ranks(model: ShareModel, originals: Sequence[Adapter]) -> dict[str, dict[str, int]]:
    """Module -> task -> columns of its own SVD, at the bytes of the model's bases and coefficients.

    Split over modules and tasks as well as can be, as in ``Baselines.own_svd``.

    Raises:
        OptionError: the adapters are not those of the model's tasks.
    """
    _check_complete(model, originals)
    norms, profiles, members = _Sums(), {}, {}
    itemsize = torch.empty(0, dtype=model.dtype).element_size()
    for module in model.layers:
        mine = [a for a in originals if module in a.shapes]
        if not mine:
            continue
        updates = read_updates(mine, module, torch.device("cpu"))
        members[module] = [a.name for a in mine]
        norms.add(members[module], updates.norms)
        profiles[module] = own_svd_options(updates, itemsize)
    ranks = _spent(profiles, members, norms, sizes(model))
    return {m: dict(zip(members[m], ranks(m), strict=True)) for m in profiles}


def _own_svd(
    profiles: Mapping[str, LayerOptions],
    members: Mapping[str, list[str]],
    norms: _Sums,
    stored: Bytes,
) -> _Sums:
    """Own SVDs at the bytes of bases and coefficients, split as well as can be."""
    return _own_sums(profiles, members, _spent(profiles, members, norms, stored))


def _spent(
    profiles: Mapping[str, LayerOptions],
    members: Mapping[str, list[str]],
    norms: _Sums,
    stored: Bytes,
) -> Callable[[str], list[int]]:
    """Module -> the rank of each task's own SVD there."""
    budget = stored.basis + stored.coefficients
    totals = torch.tensor(list(norms.squares.values()), dtype=torch.float64).sqrt()
    total = dict(zip(norms.squares, weights(totals).tolist(), strict=True))
    by_module = {
        m: torch.tensor([total[n] for n in names], dtype=torch.float64)
        for m, names in members.items()
    }
    points = split_budget([p.affordable(by_module[m], budget) for m, p in profiles.items()], budget)
    chosen = dict(zip(profiles, points, strict=True))

    def ranks(module: str) -> list[int]:
        return profiles[module].own_ranks(by_module[module], chosen[module].columns)

    return ranks


def _own_sums(
    profiles: Mapping[str, LayerOptions],
    members: Mapping[str, list[str]],
    ranks: Callable[[str], list[int]],
) -> _Sums:
    result = _Sums()
    for module, profile in profiles.items():
        result.add(members[module], own_errors(profile.own, ranks(module)))
    return result


def _shared(
    model: ShareModel,
    originals: Sequence[Adapter],
    profiles: Mapping[str, LayerOptions],
    members: Mapping[str, list[str]],
) -> dict[str, float]:
    """Share against own SVDs with as many columns in each module, split over its tasks as well as
    can be. Each module counts by relative errors, so that a large module does not decide alone.
    """
    own, share = _Sums(), _Sums()
    lost = measure(model, originals)
    for module, profile in profiles.items():
        names = members[module]
        inverse = weights(profile.energies.sqrt())
        columns = _columns(model, module)
        own.add(names, inverse * own_errors(profile.own, profile.own_ranks(inverse, columns)))
        mine = torch.tensor([lost[n][module] for n in names], dtype=torch.float64)
        share.add(names, inverse * mine)
    whole = {**own.squares, ALL: sum(own.squares.values())}
    parts = {**share.squares, ALL: sum(share.squares.values())}
    return {n: _fraction(whole[n], parts[n]) for n in whole}


def _fraction(own: float, share: float) -> float:
    """0 where own SVDs are exact but for rounding: there is nothing to gain."""
    return min(max((own - share) / own, 0.0), 1.0) if own > 1e-9 else 0.0


def _columns(model: ShareModel, module: str) -> int:
    """Pairs of directions that a module stores, shared and private."""
    shape = model.layers[module].shape
    left, right = model.layers[module].k
    private = sum(
        c.rank
        for t in model.tasks.values()
        if (c := t.coefficients.get(module)) is not None and not c.is_shared
    )
    return (left * shape.out_features + right * shape.in_features) // shape.sides + private


def inner_products(updates: CanonicalUpdates) -> Tensor:
    """<dW_i, dW_j> for all pairs: float64 [tasks, tasks], through c x c products in chunks."""
    sigma = updates.sigma.double()
    ranks = torch.tensor(updates.ranks, device=sigma.device)
    owner = torch.repeat_interleave(torch.arange(len(updates.ranks), device=sigma.device), ranks)
    result = torch.zeros(len(updates.ranks), len(updates.ranks), dtype=torch.float64)
    for start in range(0, len(sigma), _CHUNK):
        rows = slice(start, start + _CHUNK)
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
    kept = captured(seen[0], sigma, seen[1], None).cpu()
    return (updates.norms.cpu().square() - kept).clamp_min(0).sqrt()


def own_errors(energies: Tensor, ranks: list[int]) -> Tensor:
    """Error of each task's own SVD, truncated to its rank: float64 [tasks].

    Args:
        energies: tasks x r, squared singular values, descending.
        ranks: directions that each task keeps.
    """
    index = torch.arange(energies.shape[1])
    lost = energies * (index >= torch.tensor(ranks)[:, None])
    return lost.sum(1).sqrt()
