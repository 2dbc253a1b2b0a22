"""Step 1: a Share model from adapters, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from sharespace.errors import OptionError
from sharespace.executor import LOCAL, Executor
from sharespace.linalg.allocate import Dimension
from sharespace.linalg.budget import spend, stretched
from sharespace.linalg.canonical import weights
from sharespace.linalg.precision import (
    canonical_rounding,
    common_dtype,
    compute_dtype,
    full_float32,
    usable_device,
)
from sharespace.shapes import ModuleShape
from sharespace.subspace.adapter import Adapter, BaseModel
from sharespace.subspace.budgeted import Choice
from sharespace.subspace.compatible import common_base, common_shapes
from sharespace.subspace.jobs import BuildJob, built, measured, profiled
from sharespace.subspace.layers import Build, LayerResult
from sharespace.subspace.state import (
    LayerSubspace,
    Ledger,
    Settings,
    ShareModel,
    Task,
    check_new_names,
)

__all__ = ["Dimension", "Progress", "build_layers", "initialise", "new_task", "with_rule"]

Progress = Callable[[str, int, int], None]
"""Called with (module, modules done, modules in all)."""


@full_float32()
def initialise(
    adapters: Sequence[Adapter],
    dimension: Dimension,
    settings: Settings | None = None,
    *,
    base: BaseModel | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    executor: Executor = LOCAL,
    memory: int | None = None,
) -> ShareModel:
    """Build one subspace per adapted module and express every adapter in it.

    Args:
        adapters: at least one, of one base model; ranks, modules and dtypes may differ.
        dimension: how k is chosen.
        settings: method, pseudo-rank and seed.
        base: overrides what the adapters say of their base model.
        dtype: stored dtype; None: the one that holds all the adapters' factors.
        device: where to compute; the result is on the CPU.
        progress: called after each module.
        executor: where the layers are computed.
        memory: bytes that one layer of all adapters may take. A layer that would take more is built
            out of core, from a few passes over the files. None: ``one_layer.DEFAULT_MEMORY``; then
            what cannot be built out of core is built in memory all the same.

    Raises:
        MismatchError: the adapters are not of one base model.
        TaskExistsError: two adapters have the same name.
        OptionError: no adapter, or a rule that cannot be fulfilled (in the memory given).
        CorruptAdapterError: a factor holds NaN or infinity.
    """
    if not adapters:
        raise OptionError("adapters", "there are none", "Give at least one adapter")
    check_new_names([a.name for a in adapters], [])
    found = base or common_base(adapters)
    build = Build(
        settings=with_rule(settings or Settings(), dimension),
        dimension=dimension,
        dtype=dtype or common_dtype(*(a.dtype for a in adapters)),
        device=usable_device(device),
        memory=memory,
    )
    layers, tasks = build_layers(adapters, build, "init", {}, progress, executor)
    return ShareModel(found, build.settings, build.dtype, layers, {t.name: t for t in tasks})


def with_rule(settings: Settings, dimension: Dimension) -> Settings:
    """The settings with what later merges need of the rule.

    Raises:
        OptionError: the method has no such rule.
    """
    if settings.method == "share" and (dimension.error or dimension.budget):
        raise OptionError(
            "method 'share'", "it has no rule for an error or a budget", "Use k or variance"
        )
    cap = dimension.k if isinstance(dimension.k, int) else settings.cap
    return replace(settings, cap=cap, budget=dimension.budget)


def build_layers(
    adapters: Sequence[Adapter],
    build: Build,
    event: str,
    ledgers: Mapping[str, Ledger],
    progress: Progress | None,
    executor: Executor = LOCAL,
) -> tuple[dict[str, LayerSubspace], list[Task]]:
    """Layers and tasks of a model, built from the adapters alone.

    Args:
        event: name of the ledger's event.
        ledgers: of tasks that are known already and only change their form.
    """
    shapes = common_shapes(adapters)
    jobs = list(_jobs(adapters, shapes, build))
    if build.dimension.budget is not None:
        jobs = _split_budget(jobs, build.dimension.budget, executor)
    results = gathered(shapes, executor.map(built, jobs), progress)
    tasks = [new_task(a, results, event, ledgers.get(a.name)) for a in adapters]
    return {m: r.layer for m, r in results.items()}, tasks


def _jobs(
    adapters: Sequence[Adapter], shapes: Mapping[str, ModuleShape], build: Build
) -> Iterator[BuildJob]:
    for module, shape in shapes.items():
        yield BuildJob(module, shape, [a for a in adapters if module in a.shapes], build)


def gathered(
    modules: Collection[str], results: Iterable[LayerResult], progress: Progress | None
) -> dict[str, LayerResult]:
    """Module -> result, with the progress told after each."""
    found: dict[str, LayerResult] = {}
    for module, result in zip(modules, results, strict=True):
        found[module] = result
        if progress:
            progress(module, len(found), len(modules))
    return found


def new_task(
    adapter: Adapter,
    results: Mapping[str, LayerResult],
    event: str,
    known: Ledger | None,
    exact: bool = False,
) -> Task:
    """A task from the layers' results; its ledger continues where it has one.

    Args:
        exact: its updates were not rounded on their way into canonical form.
    """
    mine = {m: r for m, r in results.items() if adapter.name in r.coefficients}
    rounding = 0.0 if exact else canonical_rounding(compute_dtype(adapter.dtype))
    lost = {m: r.lost[adapter.name] + rounding * r.norms[adapter.name] for m, r in mine.items()}
    ledger = known or Ledger(
        modules=tuple(mine),
        norms=torch.tensor([r.norms[adapter.name] for r in mine.values()], dtype=torch.float64),
        truncations=torch.zeros(len(mine), 0, dtype=torch.float64),
        events=(),
    )
    return Task(
        name=adapter.name,
        coefficients={m: r.coefficients[adapter.name] for m, r in mine.items()},
        ledger=ledger.with_event(event, lost),
        kept=adapter.kept,
        config=adapter.config,
        provenance=adapter.provenance,
        adapter_bytes=adapter.nbytes,
    )


def _split_budget(jobs: Sequence[BuildJob], budget: int, executor: Executor) -> list[BuildJob]:
    """The jobs with how the budget stores their layers, from two passes over all of them."""
    totals = _total_weights(jobs, executor.map(measured, jobs))
    jobs = [replace(job, build=replace(job.build, totals=totals)) for job in jobs]
    profiles = list(executor.map(profiled, jobs))
    weighed = [
        torch.tensor([totals[a.name] for a in job.members], dtype=torch.float64) for job in jobs
    ]
    offers = [p.points(w, budget) for p, w in zip(profiles, weighed, strict=True)]
    points = stretched(spend(offers, budget), budget)
    return [
        replace(job, choice=Choice(point, tuple(p.own_ranks(w, point.columns))))
        for job, p, w, point in zip(jobs, profiles, weighed, points, strict=True)
    ]


def _total_weights(
    jobs: Sequence[BuildJob], energies: Iterable[Sequence[float]]
) -> dict[str, float]:
    """1 / |dW_i over all modules| of each task, as it was at entry."""
    total: dict[str, float] = {}
    for job, found in zip(jobs, energies, strict=True):
        for adapter, energy in zip(job.members, found, strict=True):
            total[adapter.name] = total.get(adapter.name, 0.0) + energy
    norms = torch.tensor(list(total.values()), dtype=torch.float64).sqrt()
    return dict(zip(total, weights(norms).tolist(), strict=True))
