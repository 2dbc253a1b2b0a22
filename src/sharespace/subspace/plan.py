"""What a Share model of these adapters would be worth, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sharespace.subspace.adapter import Adapter
from sharespace.subspace.fidelity import Bytes, Fidelity, fidelity
from sharespace.subspace.nulls import Nulls, nulls
from sharespace.subspace.reconstruct import rank
from sharespace.subspace.state import Private, ShareModel
from sharespace.subspace.stored import storing

Verdict = Literal["worth it", "marginal", "not worth it"]


@dataclass(frozen=True)
class PaperCount:
    """The paper's own count: the coefficients that are trained per task, nothing else."""

    parameters: int
    """Coefficients of all tasks."""
    nbytes: int


@dataclass(frozen=True)
class Storage:
    """How the updates are stored, one for each task and module that it adapts."""

    updates: int
    private: int
    """Outside the subspace, by own SVDs."""
    leading: int
    """In the subspace, but in its leading directions only."""
    nothing: int
    """Not at all: the budget did not reach so far, or the update is zero."""
    private_tasks: int
    """Tasks of which some update is private and none is in a subspace."""
    ranks: tuple[int, int]
    """Smallest and largest rank of an update."""
    family_modules: int
    """Modules in which each family of tasks has a subspace of its own."""
    subspaces: int
    """Most subspaces of a module."""


@dataclass(frozen=True)
class Plan:
    """What `init` would give."""

    bytes: Bytes
    """As Share, and what the adapters take now."""
    paper_count: PaperCount
    break_even: int | None
    """From how many adapters like these the Share model is the smaller one; None: never."""
    fidelity: Fidelity
    """Expected error per task: that of the model as it would be written."""
    nulls: Nulls
    dimensions: Mapping[str, tuple[int, int]]
    """Module -> (k_left, k_right); (0, 0) where the tasks are kept privately."""
    private_modules: int
    """Modules of which every update is private."""
    storage: Storage
    budget: int | None
    """Bytes that bases and updates may take together, where a budget chose."""
    verdict: Verdict
    reason: str


def plan(model: ShareModel, adapters: Sequence[Adapter]) -> Plan:
    """Judge a model that was built but not written.

    Args:
        model: of exactly these adapters.
        adapters: the originals.
    """
    kept = fidelity(model, adapters)
    simpler = nulls(model, adapters)
    break_even = adapters_to_break_even(model, adapters)
    verdict, reason = judge(kept, simpler, break_even, len(adapters))
    return Plan(
        bytes=kept.bytes,
        paper_count=paper_count(model),
        break_even=break_even,
        fidelity=kept,
        nulls=simpler,
        dimensions={m: layer.k for m, layer in model.layers.items()},
        private_modules=sum(_is_private(model, m) for m in model.layers),
        storage=storage(model),
        budget=model.settings.budget,
        verdict=verdict,
        reason=reason,
    )


def storage(model: ShareModel) -> Storage:
    """What each update became."""
    found = storing(model.tasks.values(), model.layers)
    parts = [len(layer.parts) for layer in model.layers.values()]
    ranks = [rank(c) for t in model.tasks.values() for c in t.coefficients.values()]
    return Storage(
        updates=found.total.total.updates,
        private=found.total.private.updates,
        leading=found.total.leading.updates,
        nothing=found.total.nothing.updates,
        private_tasks=sum(t.private.updates > 0 == t.inside.updates for t in found.tasks.values()),
        ranks=(min(ranks, default=0), max(ranks, default=0)),
        family_modules=sum(count > 0 for count in parts),
        subspaces=max([1, *parts]),
    )


def paper_count(model: ShareModel) -> PaperCount:
    """Coefficients only; the basis and all else are left out, as the paper does."""
    values = [c for t in model.tasks.values() for c in t.coefficients.values()]
    nbytes = sum(c.nbytes for c in values if not isinstance(c, Private))
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
    kept: Fidelity, simpler: Nulls, break_even: int | None, count: int
) -> tuple[Verdict, str]:
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


def _is_private(model: ShareModel, module: str) -> bool:
    values = [t.coefficients.get(module) for t in model.tasks.values()]
    found = [isinstance(v, Private) for v in values if v is not None]
    return bool(found) and all(found)


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / max(len(values), 1)
