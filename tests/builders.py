"""Adapters of every awkward kind, and dense float64 answers to judge by (tiny sizes only)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from sharespace.linalg.dimension import Dimension
from sharespace.linalg.problem import UpdateProblem
from sharespace.linalg.updates import CanonicalUpdates, canonicalise, weights
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate
from sharespace.subspace.build import initialise
from sharespace.subspace.coefficients import Coefficients, Core, Factors, PerTask
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import BuildSettings, ShareModel

MODULE = "m"
FULL = 10_000
"""A k that is larger than everything."""
ROUNDING = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 3e-3,
    torch.bfloat16: 2e-2,
}
"""Relative error that is rounding, by the stored dtype."""


def law(examples: int = 25) -> Callable[[Any], Any]:
    """Settings of a property test: no deadline, the same examples every time where CI is set."""
    return settings(
        max_examples=int(os.environ.get("SHARESPACE_EXAMPLES", examples)),
        deadline=None,
        derandomize="CI" in os.environ,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def gauss(seed: int, *shape: int) -> Tensor:
    """The same float64 numbers for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frame(rows: int, columns: int, seed: int = 0) -> Tensor:
    """float64, orthonormal columns; of random signs, which a second QR would flip."""
    q: Tensor = torch.linalg.qr(gauss(seed, rows, columns))[0]
    signed: Tensor = q * gauss(seed + 17, q.shape[1]).sign()
    return signed


def update(
    n: int,
    d: int,
    rank: int,
    seed: int = 0,
    *,
    norm: float = 1.0,
    dtype: torch.dtype = torch.float32,
    scaling: float = 1.0,
) -> LayerUpdate:
    """A random update of the given Frobenius norm with decaying singular values."""
    up = gauss(seed, n, rank) * 0.6 ** torch.arange(rank, dtype=torch.float64)
    down = gauss(seed + 1_000_003, rank, d)
    size = float((up @ down).norm()) * scaling
    root = (norm / size) ** 0.5 if size else 0.0
    return LayerUpdate((root * up).to(dtype), (root * down).to(dtype), scaling)


def adapter(name: str, updates: LayerUpdate | Mapping[str, LayerUpdate], **more: Any) -> Adapter:
    """An adapter from one update (of module ``MODULE``), or from several of one base model.

    Without a base model that is named, adapters that share no module are refused.
    """
    if not isinstance(updates, LayerUpdate):
        more.setdefault("base", BaseModel("tests/base"))
    found = {MODULE: updates} if isinstance(updates, LayerUpdate) else updates
    return Adapter.from_updates(name, found, **more)


def strangers(
    count: int, n: int = 12, d: int = 9, rank: int = 3, seed: int = 0, **more: Any
) -> list[Adapter]:
    """Adapters that share nothing."""
    return [adapter(f"t{i}", update(n, d, rank, 100 * seed + i, **more)) for i in range(count)]


def crossed() -> list[LayerUpdate]:
    """Four tasks of rank 1: two have their left direction in common, the other two their right
    one. The leading directions of the two sides belong to different tasks and capture nothing.
    """
    left, right = frame(8, 3), frame(7, 3, 1)
    pairs = [(0, 0), (0, 1), (1, 2), (2, 2)]
    return [LayerUpdate(left[:, i : i + 1], right[:, j : j + 1].mT.contiguous()) for i, j in pairs]


def relatives(
    count: int,
    n: int = 12,
    d: int = 9,
    *,
    k: int = 4,
    rank: int = 3,
    seed: int = 0,
    noise: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> list[Adapter]:
    """Adapters that lie in k common directions a side, but for noise."""
    left, right = frame(n, k, seed + 7), frame(d, k, seed + 8)
    made = []
    for i in range(count):
        up = left @ gauss(1000 * seed + i, k, rank) + noise * gauss(i + 50, n, rank)
        down = gauss(1000 * seed + i + 500, rank, k) @ right.mT
        made.append(adapter(f"t{i}", LayerUpdate(up.to(dtype), down.to(dtype))))
    return made


def build(
    adapters: Sequence[Adapter],
    k: int | tuple[int, int] | None = None,
    *,
    dtype: torch.dtype | None = None,
    variance: float | None = None,
    error: float | None = None,
    budget: int | None = None,
    **options: Any,
) -> ShareModel:
    """``initialise`` with the options in one place."""
    wanted: Any = {"*": k} if isinstance(k, tuple) else k
    dimension = Dimension(k=wanted, variance=variance, error=error, budget=budget)
    return initialise(adapters, dimension, BuildSettings(**options), dtype=dtype)


def dense(found: LayerUpdate) -> Tensor:
    """n x d in float64."""
    return found.scaling * found.up.double() @ found.down.double()


def originals(adapters: Iterable[Adapter]) -> dict[str, dict[str, Tensor]]:
    """Task -> module -> n x d in float64."""
    return {a.name: {m: dense(a.layer(m)) for m in a.shapes} for a in adapters}


def stored_dense(model: ShareModel, task: str, module: str = MODULE) -> Tensor:
    """n x d in float64, by the definition: left E F^T right^T from the stored numbers."""
    value = model.tasks[task].coefficients[module]
    if isinstance(value, PerTask):
        return value.left.double() @ value.right.double().mT
    return in_frame(model.layers[module], value)


def in_frame(layer: LayerSubspace, value: Coefficients) -> Tensor:
    """n x d in float64 of coefficients in the subspace, by their definition."""
    if isinstance(value, Core):
        matrix = value.matrix.double()
    else:
        assert isinstance(value, Factors)
        matrix = value.left.double() @ value.right.double().mT
    return layer.left_basis.double() @ matrix @ layer.right_basis.double().mT


def absolute_errors(model: ShareModel, adapters: Iterable[Adapter]) -> dict[str, dict[str, float]]:
    """Task -> module -> |dW - stored| by dense float64 arithmetic."""
    return {
        name: {m: float((w - stored_dense(model, name, m)).norm()) for m, w in updates.items()}
        for name, updates in originals(adapters).items()
    }


def relative_errors(model: ShareModel, adapters: Sequence[Adapter]) -> dict[str, float]:
    """Task -> relative error over all modules, by dense float64 arithmetic."""
    lost = absolute_errors(model, adapters)
    return {
        name: _root(lost[name].values()) / max(_root(float(w.norm()) for w in u.values()), 1e-300)
        for name, u in originals(adapters).items()
    }


def _root(values: Iterable[float]) -> float:
    return math.sqrt(sum(v * v for v in values))


def worst(model: ShareModel, adapters: Sequence[Adapter]) -> float:
    """The largest relative error of a task and module."""
    lost, whole = absolute_errors(model, adapters), originals(adapters)
    return max(
        (e / float(whole[n][m].norm()) for n, x in lost.items() for m, e in x.items() if e),
        default=0.0,
    )


def weighed_error(model: ShareModel, adapters: Sequence[Adapter], module: str = MODULE) -> float:
    """Root of the summed squared relative errors of all tasks in a module."""
    lost, whole = absolute_errors(model, adapters), originals(adapters)
    return _root(
        lost[n][module] / float(u[module].norm())
        for n, u in whole.items()
        if module in u and float(u[module].norm()) > 0
    )


def own_weighed_error(adapters: Sequence[Adapter], columns: int, module: str = MODULE) -> float:
    """The same for own truncated SVDs with so many columns in all, spread as well as can be."""
    energies = []
    for updates in originals(adapters).values():
        values = torch.linalg.svdvals(updates[module])
        if float(values.sum()) > 0:
            energies.append(values.square() / values.square().sum())
    left = torch.cat(energies).sort(descending=True).values[columns:]
    return float(left.clamp_min(0).sum().sqrt())


def problem(
    updates: Sequence[LayerUpdate], p: int | None = None, dtype: torch.dtype = torch.float64
) -> UpdateProblem:
    """The weighed problem of one module."""
    found = canonical(updates, dtype)
    return UpdateProblem(found, weights(found.norms), p)


def canonical(
    updates: Sequence[LayerUpdate], dtype: torch.dtype = torch.float64
) -> CanonicalUpdates:
    """Updates of one module in canonical form."""
    return canonicalise([(u.scaling * u.up.to(dtype), u.down.to(dtype).mT) for u in updates])


def dense_tasks(updates: CanonicalUpdates) -> list[Tensor]:
    """n x d in float64 from the canonical form."""
    return [
        one.left.double() @ torch.diag(one.sigma.double()) @ one.right.double().mT
        for one in (updates.select([i]) for i in range(len(updates.ranks)))
    ]


def orthonormality(basis: Tensor) -> float:
    """Largest entry of |Q^T Q - I|."""
    wide = basis.double()
    if wide.shape[1] == 0:
        return 0.0
    return float((wide.mT @ wide - torch.eye(wide.shape[1], dtype=torch.float64)).abs().max())


@dataclass(frozen=True)
class Family:
    """A drawn set of adapters, all of module ``MODULE``."""

    n: int
    d: int
    dtype: torch.dtype
    seed: int
    members: tuple[tuple[str, int], ...]
    """(kind, rank) of each."""
    updates: tuple[LayerUpdate, ...] = field(repr=False)

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """What hypothesis prints: the call of ``family`` that makes it again."""
        printer.text(f"family({self.n}, {self.d}, {self.dtype}, {self.seed}, {self.members})")

    @property
    def adapters(self) -> list[Adapter]:
        """t0, t1, ..."""
        return [adapter(f"t{i}", u) for i, u in enumerate(self.updates)]


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KINDS = ("stranger", "relative", "duplicate", "near", "zero", "tied", "loud", "quiet")


@st.composite
def families(
    draw: st.DrawFn,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    kinds: Sequence[str] = KINDS,
    sizes: Sequence[int] = (1, 2, 5, 9, 16, 24),
    ranks: Sequence[int] = (1, 2, 3, 7, 36),
    tasks: tuple[int, int] = (1, 6),
) -> Family:
    """Strangers, relatives, (near-)duplicates, zero updates, ties, norms 1e6 apart, mixed ranks."""
    n, d = draw(st.sampled_from(sizes)), draw(st.sampled_from(sizes))
    dtype, seed = draw(st.sampled_from(dtypes)), draw(st.integers(0, 10_000))
    member = st.tuples(st.sampled_from(kinds), st.sampled_from(ranks))
    members = tuple(draw(st.lists(member, min_size=tasks[0], max_size=tasks[1])))
    return family(n, d, dtype, seed, members)


def family(
    n: int, d: int, dtype: torch.dtype, seed: int, members: tuple[tuple[str, int], ...]
) -> Family:
    """The family that a failing test printed."""
    found: list[LayerUpdate] = []
    for i, (kind, rank) in enumerate(members):
        found.append(_member(kind, n, d, rank, 97 * seed + i, found))
    return Family(n, d, dtype, seed, members, tuple(_cast(u, dtype) for u in found))


def _cast(found: LayerUpdate, dtype: torch.dtype) -> LayerUpdate:
    return LayerUpdate(found.up.to(dtype), found.down.to(dtype), found.scaling)


def _member(
    kind: str, n: int, d: int, rank: int, seed: int, known: Sequence[LayerUpdate]
) -> LayerUpdate:
    norm = {"loud": 1e3, "quiet": 1e-3}.get(kind, 1.0)
    fresh = update(n, d, rank, seed, norm=norm, dtype=torch.float64)
    if kind == "zero":
        return LayerUpdate(torch.zeros_like(fresh.up), fresh.down)
    if kind == "tied":
        # Every direction of the same strength: no gap anywhere.
        q = min(n, d, rank)
        return LayerUpdate(frame(n, q, seed), frame(d, q, seed + 1).mT.contiguous())
    if not known or kind in ("stranger", "loud", "quiet"):
        return fresh
    last = known[-1]
    if kind == "duplicate":
        return last
    if kind == "near":
        return LayerUpdate(last.up * (1 + 1e-7 * gauss(seed, *last.up.shape)), last.down)
    mix = gauss(seed, last.up.shape[1], last.up.shape[1])
    return LayerUpdate(last.up @ mix, last.down)
