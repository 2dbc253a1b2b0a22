"""What a Share model of these adapters would be worth, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sharespace.subspace.adapter import Adapter
from sharespace.subspace.baselines import Baselines, baselines
from sharespace.subspace.fidelity import Bytes, Fidelity, fidelity, tally_storage
from sharespace.subspace.state import ShareModel
from sharespace.words import percent

PlanVerdict = Literal["worth it", "marginal", "not worth it"]


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
        grouped_modules=sum(count > 0 for count in groups),
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
    count, size = len(adapters), model.dtype.itemsize
    lora = sum(r * a.shapes[m].sides for a in adapters for m, r in a.ranks.items()) * size / count
    values = [c.nbytes for t in model.tasks.values() for c in t.coefficients.values()]
    saved = lora - sum(values) / count
    basis = sum(layer.nbytes for layer in model.layers.values())
    return max(math.floor(basis / saved) + 1, 1) if saved > 0 else None


def judge(
    measured: Fidelity, simpler: Baselines, break_even: int | None, count: int
) -> tuple[PlanVerdict, str]:
    """A verdict in plain words."""
    share, own = measured.mean_relative_error, _mean(simpler.own_svd)
    fraction = simpler.shared
    size = measured.bytes.total / max(measured.bytes.adapters, 1)
    if break_even is None or count < break_even:
        when = f"it would be from {break_even} adapters like these" if break_even else "it never is"
        return "not worth it", f"it is no smaller than the adapters at this fidelity; {when}"
    if share >= 0.97 * own:
        return "not worth it", _no_gain(fraction, share, own)
    text = (
        f"it takes {percent(size)} of the bytes at a mean error of {share:.3f} "
        f"(own SVDs of the same bytes: {own:.3f}); {percent(fraction)} is shared"
    )
    return ("worth it" if share <= 0.7 * own else "marginal"), text


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
